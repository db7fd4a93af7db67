## make demo    the export service: workers in other processes make documents; BROKER=url OUT=folder
## make test    everything that CI checks: ruff, mypy --strict, all tests; needs Python 3.11+ and make
## make test-rabbitmq4  the RabbitMQ tests and the suite on 4.x: Debian trixie's package in a folder of the cache; needs root
## make bench   the benchmarks, peers side by side; prints ratios and the targets they must reach
## make soak    a million messages while faults strike, 10 minutes; BACKEND=rocketmq SOAK="--minutes 1 --messages 50000"
## make docs    write the generated parts of docs/ again
## make clean   remove the environment and all caches
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Also where the shell asks for no byte code: tests start hundreds of Pythons, and each would compile everything anew.
export PYTHONDONTWRITEBYTECODE :=
# Most tests wait more than they compute.  A file stays in one process: its servers are started once, and ended with it.
PARALLEL    ?= -n 6 --dist loadfile --no-loadscope-reorder
# These want the machine for themselves: ledgers with killed processes, and what an import costs.
ALONE       := tests/faults tests/unit/test_import_cost.py
# Instead of all tests, e.g. make unit PYTEST_ARGS="tests/unit -k order"
PYTEST_ARGS ?=

.PHONY: help demo test lint types brokers unit test-rabbitmq4 bench soak docs clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "brokerkit needs Python 3.11 or newer; run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "$(PYTHON) -m venv $(VENV)"
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "no environment in $(VENV); in a read-only checkout: make $(MAKECMDGOALS) VENV=/some/folder/venv OUT=/some/folder"; exit 1; }

# The dev tools are a dependency group; pip 25.1+ reads it from pyproject.toml.
$(STAMP): pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e . --group dev
	@touch $@

# Its own stamp: whoever only looks at the demo needs no tools of development.
$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	@echo "installing brokerkit and the libraries of the demo into $(VENV), once ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cli,rabbitmq]' --group demo
	@touch $@

# BROKER and OUT travel in the environment, where no list of processes shows a password.
export BROKER OUT
demo: $(VENV)/.demo
	@$(BIN)/python -m examples.export_service

test: lint types unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# Installs what can be installed; what is there then must not be skipped.
brokers: $(STAMP)
	@scripts/install-brokers.sh $(BIN)/python > $(VENV)/.brokers

unit: $(STAMP) brokers
ifneq ($(PYTEST_ARGS),)
	BROKERKIT_REQUIRE=$$(cat $(VENV)/.brokers) $(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)
else
	BROKERKIT_REQUIRE=$$(cat $(VENV)/.brokers) $(BIN)/python -m pytest $(PARALLEL) $(ALONE:%=--ignore %)
	BROKERKIT_REQUIRE=$$(cat $(VENV)/.brokers) $(BIN)/python -m pytest $(ALONE)
endif

test-rabbitmq4: export BROKERKIT_TEST_RABBITMQ4 = 1
test-rabbitmq4: export BROKERKIT_REQUIRE = rabbitmq
test-rabbitmq4: $(STAMP)
	@scripts/install-brokers.sh $(BIN)/python > /dev/null
	$(BIN)/python -c "from brokerkit.testing.services.rabbitmq import newer_installation; print(newer_installation())"
	$(BIN)/python -m pytest $(PARALLEL) tests/rabbitmq tests/conformance/test_rabbitmq_*.py

$(VENV)/.bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group bench
	@touch $@

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks

BACKEND ?= rabbitmq
# Arguments of the run; python -m soak --help lists them.
SOAK ?=
soak: $(STAMP)
	@scripts/install-brokers.sh $(BIN)/python > /dev/null
	$(BIN)/python -m soak --backend $(BACKEND) $(SOAK)

docs: $(STAMP)
	$(BIN)/python -m docs.generate

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache dist build
	find . -name __pycache__ -prune -exec rm -rf {} +
