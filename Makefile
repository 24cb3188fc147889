# make        sets up the environment and builds a spoken bundle for every cell of params.yaml
# make test   sets up the environment and runs every test
# make lint   style and types

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The stages call `python`.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: all setup test lint
.DEFAULT_GOAL := all

all: setup
	$(BIN)/dvc repro

# More threads than cores only slow these small networks down.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(VENV)/.installed

# The stamp is written last: an interrupted installation is repeated.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Setting up $(VENV); the first time takes a few minutes"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or later is needed; set PYTHON=")'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "error: this Python has no venv; apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[build,dev]'
	@touch $@
