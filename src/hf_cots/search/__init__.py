"""What a user does with a model: find pictures by words or by another picture."""

from .index import Match, PictureIndex


__all__ = ["Match", "PictureIndex"]
