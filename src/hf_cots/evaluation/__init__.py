"""How good a model is: retrieval, other tasks, diagnostics, and how results are shown."""
