# make setup        everything needed, in .venv (no GPU, about 3 minutes)
# make quickstart   distil a real 135M model on this machine
# make test         all tests                    make test-fast   those that take no second each
# make check        what CI runs: lint, types, import contracts, all tests
# make requirements write requirements/cpu.txt again from what .venv holds
# make docs         write docs/configuration.md again from the settings
# make clean        remove caches and builds; .venv and runs/ stay

PYTHON ?=
BIN := .venv/bin
STAMP := .venv/.setup-done
# One pytest process a core; eight are enough, since each imports torch first. `make test-fast PARALLEL=` uses one.
PARALLEL := -n logical --maxprocesses 8 --dist worksteal

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
	$(BIN)/pytest

test-fast: setup
	$(BIN)/pytest $(PARALLEL) -m "not slow and not ray and not vllm"

check: lint types contracts test

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
