"""Diagnostics of a model and its data: noisy pairs, attention, codes, the token level."""
