# Everything runs in a virtual environment of its own, made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# No telemetry, no update checks, no downloads but packages.
export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1
export RAY_USAGE_STATS_ENABLED = 0
export HF_HUB_OFFLINE = 1
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: help demo test test-docker lint types imports unit format constraints clean

help: ## List what make can do
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

demo: $(INSTALLED) ## Compare FedDM, FedAvg and the controls on digits; ends with a table and a report
	$(BIN)/tessera compare examples/demo.toml

test: lint types imports unit ## Everything that is checked: ruff, mypy, import-linter, tests

test-docker: $(INSTALLED) ## A federation in containers, end to end; needs a Docker engine and Compose
	TESSERA_TEST_DOCKER=1 $(BIN)/python -m pytest -q tests/docker \
	    --timeout 3600 --durations 10 -rA $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(INSTALLED)
	$(BIN)/mypy

imports: $(INSTALLED)
	$(BIN)/lint-imports

# As collected: few tests that take minutes come before many that take none, so that no worker is
# left with a long file when the others are done. One worker more than cores, for some tests wait.
unit: $(INSTALLED)
	$(BIN)/python -m pytest -q -n "$$($(BIN)/python -c 'import os; print(1 + os.cpu_count())')" --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

format: $(INSTALLED) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: ## Write constraints.txt anew from the newest versions that fit pyproject.toml
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	( echo "# Versions that were installed and tested together. Made by: make constraints" ; \
	  $(BIN)/python -m pip freeze --exclude-editable ) > constraints.txt.new
	mv constraints.txt.new constraints.txt
	touch $(INSTALLED)

clean: ## Remove the virtual environment and caches; runs and data stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	sys.exit(None if v >= (3, 11) else f"Python {v[0]}.{v[1]} found at {sys.executable}; Tessera needs 3.11 or later: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt -e ".[dev]"
	touch $@
