# Every target does its own set-up, in the project-local virtual environment .venv.
# Another interpreter: make PYTHON=/path/to/python3.12 ...

PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 $(BIN)/python -m pip install --quiet
# `make bench BENCH=name` runs benchmarks/name.py; ARGS go to the program of `demo`, `test` and `bench`.
BENCH ?= speed
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint types check docs bench clean

help:
	@echo "make demo    train, prune, compact and evaluate on embedded digits (about 3 minutes)"
	@echo "make check   lint, types and tests; each alone: make lint, make types, make test"
	@echo "make docs    the documentation, into site/"
	@echo "make bench   the speed benchmark; another one: make bench BENCH=name"
	@echo "make clean   remove .venv and what tools left behind"

demo: $(VENV)/.dev
	$(BIN)/anp-vs demo $(ARGS)

# One thread a worker: the networks of the tests are too small to gain from more.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

check: lint types test

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.dev
	@test -f benchmarks/$(BENCH).py || { echo "There is no benchmarks/$(BENCH).py; choose one of:" \
	  $$(ls benchmarks/*.py 2>/dev/null); exit 2; }
	$(BIN)/python benchmarks/$(BENCH).py $(ARGS)

clean:
	rm -rf $(VENV) site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The environment: an interpreter that fits, then torch alone with its pin (so that nothing else draws another build
# of it), then the package. The pins are tested for Python 3.11 to 3.13; any other is installed without them.
$(VENV)/.dev: pyproject.toml constraints.txt
	@set -e; \
	python=; found=; \
	for candidate in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	  version=$$("$$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
	  found="$$found $$candidate (Python $$version)"; \
	  case "$$version" in 3.11|3.12|3.13) python=$$candidate; pins="-c constraints.txt"; break;; esac; \
	  case "$$version" in 2.*|3.?|3.10) continue;; esac; \
	  if [ -n "$(PYTHON)" ]; then \
	    echo "$$candidate is Python $$version; tested are 3.11 to 3.13. Going on, without the pinned versions."; \
	    python=$$candidate; pins=; \
	  fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "Python 3.11, 3.12 or 3.13 is needed; found:$${found:- none}."; \
	  echo "Debian or Ubuntu: sudo apt-get install python3 python3-venv"; \
	  echo "macOS: install Python 3.13 from python.org, or: brew install python@3.13"; \
	  echo "It is elsewhere? Name it: make PYTHON=/path/to/python3.13 $(MAKECMDGOALS)"; \
	  exit 2; \
	fi; \
	if ! "$$python" -c 'import venv, ensurepip' 2>/dev/null; then \
	  echo "$$python has no module to make a virtual environment with."; \
	  echo "Debian or Ubuntu: sudo apt-get install python3-venv"; \
	  exit 2; \
	fi; \
	echo "Installing into $(VENV) with $$python; the first time this downloads PyTorch and takes some minutes."; \
	"$$python" -m venv --clear $(VENV); \
	$(PIP) $$pins torch; \
	$(PIP) $$pins -e ".[dev]"; \
	echo "$$pins" > $(VENV)/.pins; \
	touch $@

$(VENV)/.docs: $(VENV)/.dev
	$(PIP) $$(cat $(VENV)/.pins) -e ".[docs]"
	@touch $@
