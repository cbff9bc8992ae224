# Two commands are enough: `make fit` trains the quick start, `make test` runs the tests.
# Both create .venv and install what is missing; a second call installs nothing.

PYTHON ?= python3
# Where torch comes from; empty: pip's own configuration. CPU-only build: TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# Further arguments of `make fit`, `make test` and `make bench`: make fit ARGS='--seed_everything 3'
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.installed
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TORCH := $(shell grep '^torch==' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help install fit test slow gpu lint format types docs report wheel bench clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16

install: $(STAMP) ## create .venv and install HyperRL with its development tools

# torch goes first, alone and pinned: left to the resolver, the newest build with its CUDA libraries would come along.
$(STAMP): pyproject.toml constraints.txt hatch_build.py $(wildcard hyperrl/modules/*.[ch] hyperrl/modules/sequence/*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and \
	  "HyperRL needs Python 3.11 to 3.13, not " + sys.version.split()[0] + ": try make PYTHON=python3.11")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@echo "Installing HyperRL into .venv (once; a few minutes)"
	$(PIP_INSTALL) --upgrade pip
	$(PIP_INSTALL) --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)'
	$(PIP_INSTALL) -c constraints.txt -e '.[dev]'
	@touch $@

fit: $(STAMP) ## train the quick start: RNN+HN on GridNavi
	$(BIN)/hyperrl fit --config configs/experiment/quickstart.yaml $(ARGS)

test: $(STAMP) ## run the test suite
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal -m 'not slow' $(ARGS)

slow: $(STAMP) ## run the tests that take minutes: a sweep whose processes are killed
	$(BIN)/python -m pytest -m slow $(ARGS)

gpu: $(STAMP) ## run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu $(ARGS)

lint: $(STAMP) ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## repair style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## check types
	$(BIN)/mypy

docs: $(STAMP) ## build the documentation in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

report: $(STAMP) ## rewrite the tables and training pictures of docs/results.md from results/
	$(BIN)/hyperrl compare --report results/report.yaml

wheel: $(STAMP) ## build dist/*.whl
	$(BIN)/python -m build --wheel --no-isolation

bench: $(STAMP) ## run all benchmarks (5 minutes); to compare: make bench ARGS='--against OLD.json'
	$(BIN)/python benchmarks/run.py $(ARGS)

clean: ## remove .venv, build products and caches; runs/ stays
	rm -rf .venv build dist site .pytest_cache .mypy_cache .ruff_cache hyperrl/modules/*.so
	find . -name __pycache__ -prune -exec rm -rf {} +
