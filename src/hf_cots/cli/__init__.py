"""`hf-cots`: one verb per job. Thin: parse, call, print. What a verb needs is imported when it runs."""

from . import train, publish, evaluate, index, search, serve, export, data, data_sets, convert, doctor  # noqa: F401  # isort: skip  (each adds its verbs, in this order)
from .app import app


__all__ = ["app"]
