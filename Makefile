# make demo    train, compare and see a first fine-tune (ten minutes on two cores)
# make test    everything a change must pass: lint, types, tests
# make check   lint and types only
# make bench   every benchmark, one after the other
# make docs    the documentation as a site, in site/
#
# Each target first brings the environment in VENV up to date; that takes no time when nothing changed.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet
PINNED := pyproject.toml constraints.txt demo-packages.txt

.PHONY: demo test check bench docs clean

demo: $(VENV)/installed
	$(BIN)/manytune demo

test: check
	$(BIN)/python -m pytest -n 2

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed-dev
	set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

docs: $(VENV)/installed-dev
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "manytune needs Python 3.11 or newer; set PYTHON=... (found " + sys.version.split()[0] + ")")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(PINNED) | $(VENV)/pyvenv.cfg
	@echo "Installing manytune and its pinned dependencies into $(VENV) (once; a few minutes)"
	$(PIP) install -c constraints.txt -e .
	$(PIP) install --no-deps -r demo-packages.txt
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@
