"""Image-text pairs: sources, augmentation, batches, caches."""
