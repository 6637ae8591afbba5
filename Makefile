# Needs make and Python 3.11 or newer; everything else goes into .venv.

PIP := .venv/bin/pip --quiet --quiet --disable-pip-version-check --no-input
# A name that does not run, or is too old, is passed over. make PYTHON=/path/to/python picks one.
CANDIDATES := $(or $(PYTHON),python3.11 python3.12 python3.13 python3.14 python3 python)
# Two processes: most of the time goes into compiling, which uses one core.
PYTEST_FLAGS ?= -n 2 --dist loadfile

.PHONY: help install demo test check format plan-recipes clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile

install: .venv/.installed  ## l2s in .venv, with pinned requirements

demo: .venv/.installed  ## the whole method on the arithmetic world, into runs/demo
	.venv/bin/l2s demo --workdir runs/demo
	@echo "The report is runs/demo/report.html; the numbers are in runs/demo/summary.json." >&2

test: .venv/.installed-test  ## every test
	.venv/bin/python -m pytest $(PYTEST_FLAGS)

check: .venv/.installed-test  ## lint, format and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright

# Half an hour or more: every size of Qwen2.5 that a test cannot wait for.
plan-recipes: .venv/.installed-test  ## the recipes' smallest slices, compiled for real
	@$(PIP) install --constraint constraints.txt --editable '.[plan]'
	.venv/bin/python benchmarks/plan_recipes.py

format: .venv/.installed-test  ## rewrite the code as `make check` wants it
	.venv/bin/ruff check --fix-only .
	.venv/bin/ruff format .

clean:  ## remove .venv, caches and runs/demo
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis runs/demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is the last file that venv writes, so a half-made environment is made again.
.venv/bin/pip:
	@for candidate in $(CANDIDATES); do \
	  if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo "Making .venv with $$($$candidate --version)" >&2; \
	    exec $$candidate -m venv --clear .venv; \
	  fi; \
	done; \
	echo "No Python 3.11 or newer among: $(CANDIDATES)." >&2; \
	echo "Install one, or name it: make PYTHON=/path/to/python" >&2; \
	exit 1

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/pip
	@echo "Installing l2s and what it needs into .venv (some minutes the first time)" >&2
	@$(PIP) install --constraint constraints.txt --editable .
	@touch $@

.venv/.installed-test: pyproject.toml constraints.txt | .venv/bin/pip
	@echo "Installing l2s and what its tests need into .venv (some minutes the first time)" >&2
	@$(PIP) install --constraint constraints.txt --editable '.[test]'
	@touch .venv/.installed $@
