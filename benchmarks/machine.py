"""Describe the machine and the versions that a benchmark ran with."""

from hf_cots.training.record import machine


__all__ = ["machine"]
