"""Text-to-image and image-to-text retrieval: metrics, intervals, reports."""
