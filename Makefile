# `make report` and `make test` each do all their own set-up: they need python3 (3.11 or newer), make and a package index.

PYTHON ?= python3
CORES ?= 2
# More for the Snakemake of `make report`, such as ARGS=--dry-run.
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: report rivals test test-all mutants lint clean

report: $(INSTALLED)
	$(BIN)/snakemake --cores $(CORES) $(ARGS)
	@echo "open results/digits/report.html"

# The methods that are too slow or too weak at 8x8 for the report above, in another report.
rivals: report
	$(BIN)/snakemake --cores $(CORES) --configfile config/rivals.yaml
	@echo "open results/rivals/report.html"

# The tests of a file stay together, since they share what its fixtures made, and keep the order of tests/conftest.py.
PYTEST := $(BIN)/python -m pytest -q --dist loadfile --no-loadscope-reorder

# What takes minutes is marked slow: whole workflows, kills, Slurm, several processes, attacks with power.
test: $(INSTALLED)
	$(PYTEST) --numprocesses $(CORES) -m "not slow"

# One process more than cores, since tests with a cluster and with signals wait a lot.
test-all: test
	$(PYTEST) --numprocesses $$(($(CORES) + 1)) -m slow

# Plants one bug at a time in a copy of the code and runs the check that must notice it: minutes, for who changes privacy code.
mutants: $(INSTALLED)
	$(BIN)/python tests/mutants/run.py --jobs $(CORES)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint --configfile config/paper.yaml

# .snakemake stays: there Snakemake keeps the recipes by which the results of all studies were made. Kept results stay, too.
clean:
	rm -rf $(VENV) results/data
	find results -mindepth 2 -maxdepth 2 -regex 'results/\(digits\|rivals\|tiny\)/.*' ! -name kept -exec rm -rf {} +

# Installs again only when the requirements change: the package itself is editable. Without PINS=cpu or PINS=cuda, PyTorch's
# CPU build where the index offers it, otherwise the build of PyPI.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PINNED := $(PIP) --require-hashes --requirement requirements
$(INSTALLED): pyproject.toml $(wildcard requirements/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $(PYTHON) is older than 3.11; run: make PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(if $(PINS),$(PINNED)/$(PINS).txt,$(PINNED)/cpu.txt 2> /dev/null || $(PINNED)/cuda.txt)
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@
