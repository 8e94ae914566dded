"""What a model and its data really do: noisy pairs, leaks, attention, codes, the token level."""
