# `make help` lists the commands. Everything runs in $(VENV), whatever environment is active.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
ARGS ?=
FRAMEWORK ?= torch

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# A PYTHON given by hand is part of the stamp's name, so that asking for another interpreter is not overlooked.
STAMP := $(VENV)/.installed$(if $(filter file,$(origin PYTHON)),,-$(notdir $(PYTHON)))
PEERS := $(STAMP)-peers

# Settings of an active environment that would lead Python or pip out of $(VENV).
unexport PYTHONHOME PYTHONPATH PIP_PREFIX PIP_TARGET PIP_USER

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help verify test peers bench lint format docs tables clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  ARGS='...'     further arguments for verify, test, peers and bench, such as ARGS=--quick"
	@echo "  FRAMEWORK=jax  what bench measures (now: $(FRAMEWORK))"
	@echo "  PYTHON=...     the interpreter that $(VENV) is made with, 3.11 or newer (now: $(PYTHON))"

verify: $(STAMP) ## Show that JAX, torch and the definition agree on this machine.
	$(BIN)/adafactor verify $(ARGS)

test: $(STAMP) ## Run the whole test suite.
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder $(ARGS)

peers: $(PEERS) ## Step the installed originals and their recipes side by side; takes minutes.
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup parity_tests/peers $(ARGS)

bench: $(PEERS) ## Time steps beside those of other optimizers; takes a quarter of an hour.
	$(BIN)/python -m benchmarks $(FRAMEWORK) $(ARGS)

tables: $(STAMP) ## Show which recorded runs are matched and which faults they reject; takes minutes.
	$(BIN)/python -m parity_tests.tables

lint: $(STAMP) ## Check style, types and layers.
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports --no-logo

format: $(STAMP) ## Mend style as far as that can be done by machine.
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

docs: $(STAMP) ## Write the generated pages: docs/recipes.md.
	$(BIN)/adafactor recipes --markdown > $(VENV)/recipes.md
	mv $(VENV)/recipes.md docs/recipes.md

clean: ## Remove the environment, the report, caches and build leftovers.
	rm -rf $(VENV) adafactor-report build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "PYTHON must be Python 3.11 or newer, got $(PYTHON) ($$($(PYTHON) -V 2>&1 | tail -n 1))." \
	       "Name another: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@test "$$($(BIN)/python -V 2>/dev/null)" = "$$($(PYTHON) -V)" || { \
	  echo "Making $(VENV) with $$($(PYTHON) -V)"; $(PYTHON) -m venv --clear $(VENV); }
	$(PIP) install --constraint constraints.txt pip
	$(PIP) install --constraint constraints.txt --group dev --editable '.[all]'
	@touch $@

$(PEERS): $(STAMP)
	$(PIP) install --constraint constraints.txt --group peers
	$(PIP) install --constraint constraints.txt --group peers-alone --no-deps
	@touch $@
