"""Helpers of the tests: tiny models and data, reference implementations, stubs."""
