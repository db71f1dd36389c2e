# Every target but help and clean sets up .venv first, which is silent and quick when nothing changed.
#   PYTHON=...  the Python (3.10 to 3.13) to make .venv with
#   HOURS=1        how long soak takes
#   ARGS="..."  what follows the command of train, evaluate, test and test-all
#   WORKERS=N   test files that run side by side; 0: one after the other

PYTHON ?=
ARGS ?=
HOURS ?= 1
WORKERS ?= 3
python := .venv/bin/python
packages := actors common evaluator learner
pytest := $(python) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup train evaluate test test-all drill soak ray-upgrade lint check format clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 18

setup: ## make .venv, install everything pinned, step one Procgen environment
	@PYTHON='$(PYTHON)' bash tools/setup.sh

train: setup ## train: make train ARGS="--total-frames 200k"
	@exec $(python) -m learner $(ARGS)

evaluate: setup ## score a checkpoint or a run: make evaluate ARGS="RUN_DIR"
	@exec $(python) -m evaluator $(ARGS)

test: setup ## the tests that start no clusters, and one short run per mode (under 4 minutes)
	@exec $(pytest) -m 'not processes' $(ARGS)

test-all: setup ## all tests (about 12 minutes on two cores)
	@exec $(pytest) $(ARGS)

drill: setup ## inject every fault into runs on this host and print what happened (under 6 minutes)
	@exec $(python) -m drills.drill $(ARGS)

soak: setup ## inject a random fault every half minute: make soak HOURS=1
	@exec $(python) -m drills.soak --hours $(HOURS) $(ARGS)

ray-upgrade: setup ## check what Heldout relies on in Ray's authentication; run it before moving Ray's version
	@exec $(python) -m drills.ray_upgrade $(ARGS)

lint: setup ## ruff (lint and format) and mypy, changing nothing
	@$(python) -m ruff check --quiet
	@$(python) -m ruff format --check --quiet || { echo "some files are not formatted; run: make format" >&2; exit 1; }
	@$(python) -m mypy --no-error-summary $(packages) benchmarks drills

check: lint test-all ## what CI runs: lint, then all tests

format: setup ## rewrite the code as ruff formats it
	@$(python) -m ruff check --quiet --fix-only
	@$(python) -m ruff format

clean: ## remove .venv and caches; runs/ stays
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	@find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +
