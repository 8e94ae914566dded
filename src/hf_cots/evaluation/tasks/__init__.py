"""Zero-shot classification, image-to-image retrieval, and semantic text similarity."""
