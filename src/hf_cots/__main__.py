"""`python -m hf_cots` is `hf-cots`."""

from .cli import app


if __name__ == "__main__":
    app(prog_name="hf-cots")
