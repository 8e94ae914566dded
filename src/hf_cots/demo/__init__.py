"""`hf-cots demo`: the whole way from pictures to a searchable model, on a CPU, in minutes."""

from .run import run_demo


__all__ = ["run_demo"]
