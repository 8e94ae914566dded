"""Evaluation of models: retrieval, other tasks, diagnostics, and the rendering of results."""
