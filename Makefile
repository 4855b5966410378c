# Each target does its own set-up: Python 3.11 or newer, make and git are all that a machine needs.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
INSTALL = $(BIN)/python -m pip install --quiet --editable ".[local,postgres,redis]" --group dev

.PHONY: demo test lint types layers torture bench notebooks docs clean

demo: $(READY)  ## the main job, in under a minute
	$(BIN)/python examples/quickstart.py

test: $(READY) lint types layers  ## what CI runs
	$(BIN)/python -m pytest -n auto --dist loadgroup

torture: $(READY)  ## kills, faults, histories, mutants: up to half an hour, one table
	$(BIN)/python -m tests.torture $(TORTURE)

bench: $(READY)  ## side by side with the peers
	$(BIN)/python -m benchmarks

notebooks: $(READY)  ## run them again, and keep the outputs that changed
	$(BIN)/python -m tests.notebooks

docs: $(READY)  ## into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

layers: $(READY)
	$(BIN)/lint-imports

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(INSTALL) --constraint constraints.txt || { echo "not all versions of constraints.txt are to be had: taking others"; $(INSTALL); }
	touch $(READY)

clean:
	rm -rf $(VENV) demo-files .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
