# make demo    train, compare and see a first fine-tune (ten minutes on two cores)
# make test    everything a change must pass: lint, types, tests; brings the extras and a browser if they are missing
# make check   lint, static checks and types only
# make audit   ask an index whether a pinned version has a known vulnerability
# make test-deep   the tests with ten times as many random cases
# make attacks     tens of thousands of hostile requests, adapters and files; writes docs/reliability.md
# make faults  hundreds of kills, full disks and damaged files at drawn points; writes docs/reliability.md
# make ray-serve   two replicas on a Ray cluster of this machine, one of them killed; installs Ray Serve
# make bench   the benchmarks, one after the other (E2E=devset.csv for those on E2E)
# make docs    the documentation as a site, in site/
#
# Each target first brings the environment in VENV up to date; that takes no time when nothing changed.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet
PINNED := pyproject.toml constraints.txt demo-packages.txt

.PHONY: ray-serve audit attacks faults demo test test-deep check bench docs clean browser

demo: $(VENV)/installed
	$(BIN)/manytune demo

# Many tests start processes, which find the package compiled, whatever the environment says of bytecode.
test: check browser
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2

test-deep: $(VENV)/installed-dev browser
	MANYTUNE_DEPTH=10 $(BIN)/python -m pytest -n 2

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: $(VENV)/installed-dev
	$(PIP) install -c constraints.txt pip-audit
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip

attacks: $(VENV)/installed-dev
	$(BIN)/python -m tests.attacks.report

faults: $(VENV)/installed-dev
	$(BIN)/python -m tests.faults.report

ray-serve: $(VENV)/installed-dev
	$(PIP) install -c constraints.txt -e '.[ray-serve]'
	$(BIN)/python -m tests.replicas.ray_serve_check

bench: $(VENV)/installed-dev
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/merge_exactness.py
	$(if $(E2E),$(BIN)/python benchmarks/training.py --e2e $(E2E),@echo "benchmarks/training.py left out: set E2E=devset.csv")

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

$(VENV)/installed-dev: $(VENV)/installed test-packages.txt
	$(PIP) install -c constraints.txt -e '.[dev]'
	$(PIP) install --no-deps -r test-packages.txt
	@touch $@

# What pages look like is tested in a browser, which is no Python package.
browser:
	@.ci/browser
