"""The `hf-cots` command: each verb parses its options, calls the package and prints. Imports happen when a verb
runs."""

from . import train, publish, evaluate, index, search, serve, export, data, data_sets, convert, doctor  # noqa: F401  # isort: skip  (each adds its verbs, in this order)
from .app import app


__all__ = ["app"]
