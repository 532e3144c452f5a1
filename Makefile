# make setup        everything needed, in .venv (no GPU, about 3 minutes)
# make quickstart   distil a real 135M model on this machine
# make test         all tests                    make test-fast   those that take no second each
#                   CHANGED=1 only those that the change since main touches, CHANGED=HEAD~3 the last three commits
# make check        what CI runs: lint, types, import contracts, all tests
# make requirements write requirements/cpu.txt again from what .venv holds
# make docs         write docs/configuration.md again from the settings
# make clean        remove caches and builds; .venv and runs/ stay

PYTHON ?=
BIN := .venv/bin
STAMP := .venv/.setup-done
 # One pytest process a core; eight are enough, since each imports torch first. Tests with Ray wait half of their time, so
 # there is one more of them, and as many as 16 GiB hold. `make test PARALLEL=` and `make test-fast PARALLEL=` use one.
CORES := $(shell getconf _NPROCESSORS_ONLN)
test: PARALLEL := -n $(shell expr $(CORES) + 1) --maxprocesses 4 --dist loadgroup --no-loadscope-reorder
test-fast: PARALLEL := -n $(CORES) --maxprocesses 8 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-fast check lint types contracts requirements docs clean

help:
	@sed -n 's/^# //p' Makefile

setup: $(STAMP)

$(STAMP): requirements/cpu.txt requirements/setup.sh pyproject.toml
	@PYTHON="$(PYTHON)" requirements/setup.sh
	@touch $@

quickstart: setup
	$(BIN)/rayqd distill @configs/quickstart.toml

test: setup
ifdef CHANGED
	$(BIN)/python tests/changed.py $(CHANGED) | xargs -r $(BIN)/pytest $(PARALLEL)
else
	$(BIN)/pytest $(PARALLEL)
endif

test-fast: setup
	$(BIN)/pytest $(PARALLEL) -m "not slow and not ray and not vllm"

check: lint contracts
	+$(MAKE) --no-print-directory -j 2 types test

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright

contracts: setup
	$(BIN)/lint-imports

requirements: setup
	$(BIN)/python requirements/pin.py > requirements/cpu.txt.new
	mv requirements/cpu.txt.new requirements/cpu.txt

docs: setup
	$(BIN)/python -m rayqd config --markdown > docs/configuration.md.new
	mv docs/configuration.md.new docs/configuration.md

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find rayqd tests tune -name __pycache__ -prune -exec rm -rf {} +
