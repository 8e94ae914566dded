"""Encoders, and search with them: in one stage, or with a re-ranker as the second."""
