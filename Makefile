# Everything runs in .venv, made with plain python3 and pip. `make demo` and `make test` need nothing before them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST_ARGS ?=
DEMO_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test check check-all assets clean

help:
	@echo "make demo       set up, fetch the default model and data, train, write runs/demo/report.html (FULL=1: the voice too)"
	@echo "make test       set up, fetch what the tests need, run the whole test suite"
	@echo "make check      format, lint, types and the fast tests"
	@echo "make check-all  format, lint, types and the whole test suite"
	@echo "make setup      only the virtual environment with every extra, in .venv"
	@echo "make assets     only the models and data that demo and tests use"
	@echo "make clean      remove .venv and what builds and tools left (not runs/, not downloaded assets)"

$(VENV)/.created:
	@echo "[1/3] virtual environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another one with: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv --clear $(VENV) || { echo "error: python3 -m venv failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

# Two sizes: the demo needs the base and what training writes; tests need every extra and the oracles.
$(VENV)/.installed-demo: pyproject.toml constraints.txt $(VENV)/.created
	@echo "[2/3] pinned libraries for the demo (several GB the first time, mostly torch; a few minutes)"
	@$(PIP) install -q -c constraints.txt -e ".[train,eval,video,speech]"
	@touch $@

$(VENV)/.installed-all: pyproject.toml constraints.txt $(VENV)/.created
	@echo "[2/3] pinned libraries with every extra (about 7 GB the first time, mostly torch; a few minutes)"
	@$(PIP) install -q -c constraints.txt -e ".[all,dev,oracles]"
	@touch $@ $(VENV)/.installed-demo

setup: $(VENV)/.installed-all

demo: $(VENV)/.installed-demo
	@echo "[3/3] default model and data"
	@$(BIN)/mm-llama assets fetch --for demo
	@$(BIN)/python -m mm_llama.demos.demo $(if $(FULL),--full) $(DEMO_ARGS)

test: $(VENV)/.installed-all
	@echo "[3/3] models and data for the tests"
	@$(BIN)/mm-llama assets fetch --for test
	MM_LLAMA_OFFLINE=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/.installed-all
	@$(BIN)/mm-llama assets fetch --for test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	MM_LLAMA_OFFLINE=1 $(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

check-all: $(VENV)/.installed-all
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@$(MAKE) --no-print-directory test

assets: $(VENV)/.installed-demo
	@$(BIN)/mm-llama assets fetch --for demo --for test

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
