"""Evaluation on zero-shot classification, image retrieval by label and semantic textual similarity."""
