# make setup        all that a run needs, in .venv (no GPU, about 2 minutes); make setup-dev: the rest, for tests too
# make quickstart   distil a real 135M model on this machine
# make test         all tests                    make test-fast   those that take no second each
#                   CHANGED=1 only those that the change since main touches, CHANGED=HEAD~3 the last three commits
# make chaos        kill, stop and damage a run's processes and files; ARGS="--faults 200" for the long form
# make check        what CI runs: lint, types, import contracts, all tests
# make requirements write requirements/run.txt and dev.txt again from what .venv holds
# make docs         write docs/configuration.md again from the settings
# make clean        remove caches and builds; .venv and runs/ stay

PYTHON ?=
BIN := .venv/bin
STAMP := .venv/.setup-run
STAMP_DEV := .venv/.setup-dev
 # One pytest process a core for what is one process itself; eight are enough, since each imports torch first. A run on Ray
 # or an engine is a dozen processes that keep two cores busy with imports alone: of those one at a time for every four cores.
 # `make test-fast PARALLEL=` uses one process.
CORES := $(shell getconf _NPROCESSORS_ONLN)
PARALLEL := -n $(CORES) --maxprocesses 8 --dist worksteal
FAST := not slow and not ray and not vllm
MANY_PROCESSES := ray or vllm
FEW_AT_ONCE := $(if $(filter-out 0 1,$(shell expr $(CORES) / 4)),-n $(shell expr $(CORES) / 4) --maxprocesses 4 --dist loadfile --no-loadscope-reorder)

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev quickstart test test-fast chaos check lint types contracts requirements docs clean

help:
	@sed -n 's/^# //p' Makefile

setup: $(STAMP)

setup-dev: $(STAMP_DEV)

$(STAMP): requirements/run.txt requirements/setup.sh requirements/setup.py requirements/install.py pyproject.toml
	@PYTHON="$(PYTHON)" requirements/setup.sh run
	@touch $@

$(STAMP_DEV): requirements/dev.txt $(STAMP)
	@PYTHON="$(PYTHON)" requirements/setup.sh dev
	@touch $@

quickstart: setup
	$(BIN)/rayqd distill @configs/quickstart.toml

test: setup-dev
ifdef CHANGED
	@tests=$$($(BIN)/python tests/changed.py $(CHANGED)) || exit; [ "$$tests" ] || exit 0; \
	$(BIN)/pytest $(PARALLEL) -m "not ($(MANY_PROCESSES))" $$tests || [ $$? -eq 5 ] || exit 1; \
	$(BIN)/pytest $(FEW_AT_ONCE) -m "$(MANY_PROCESSES)" $$tests || [ $$? -eq 5 ]  # there are none of one kind
else
	$(BIN)/pytest $(PARALLEL) -m "not ($(MANY_PROCESSES))"
	$(BIN)/pytest $(FEW_AT_ONCE) -m "$(MANY_PROCESSES)"
endif

test-fast: setup-dev
	$(BIN)/pytest $(PARALLEL) -m "$(FAST)"

chaos: setup-dev
	PYTHONPATH=. $(BIN)/python tests/chaos/storm.py $(ARGS)

check: lint contracts
	+$(MAKE) --no-print-directory types test

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup-dev
	$(BIN)/pyright

contracts: setup-dev
	$(BIN)/lint-imports

requirements: setup-dev
	$(BIN)/python requirements/pin.py

docs: setup
	$(BIN)/python -m rayqd config --markdown > docs/configuration.md.new
	mv docs/configuration.md.new docs/configuration.md

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find rayqd tests tune -name __pycache__ -prune -exec rm -rf {} +
