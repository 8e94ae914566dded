"""`python -m hf_cots` is `hf-cots`."""

from .cli import app


app()
