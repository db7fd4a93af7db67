## make test    everything that CI checks: ruff, mypy --strict, all tests; needs Python 3.11+ and make
## make bench   the benchmarks, peers side by side; prints ratios and the targets they must reach
## make docs    write the generated parts of docs/ again
## make clean   remove the environment and all caches
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Most tests wait more than they compute; those of tests/faults want the machine for themselves.
PARALLEL    ?= -n 4 --dist worksteal
# Instead of all tests, e.g. make unit PYTEST_ARGS="tests/unit -k order"
PYTEST_ARGS ?=

.PHONY: help test lint types unit bench docs clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "brokerkit needs Python 3.11 or newer; run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The dev tools are a dependency group; pip 25.1+ reads it from pyproject.toml.
$(STAMP): pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e . --group dev
	@touch $@

test: lint types unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP)
ifneq ($(PYTEST_ARGS),)
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)
else
	$(BIN)/python -m pytest $(PARALLEL) --ignore tests/faults
	$(BIN)/python -m pytest tests/faults
endif

$(VENV)/.bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group bench
	@touch $@

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks

docs: $(STAMP)
	$(BIN)/python -m docs.generate

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache dist build
