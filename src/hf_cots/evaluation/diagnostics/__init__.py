"""Diagnostics of a model and its data: noisy pairs, attention maps, image codes and the token level."""
