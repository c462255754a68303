# The two commands: `make demo` and `make test`. `make help` lists the rest.
#
#   PYTHON=/path/to/python3.12   which interpreter makes .venv (3.11 or newer; found by itself otherwise)
#   SERVICES=none                leave out whatever needs foreign programs, servers or loop mounts
#   IMAGE=path-or-url            the image `make demo` moves (it builds one otherwise)
#   ARGS="..."                   further arguments for pytest, chaos, the bench or the demo

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?=
SERVICES ?= all
IMAGE ?=
ARGS ?=
export PYTHON SERVICES

BIN := .venv/bin

.PHONY: help setup services rivals check format test chaos bench demo openapi lock clean

help:  ## show this list
	@echo "Glissade: make TARGET"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@sed -n 's/^#   \([A-Z]*=.*\)/  \1/p' $(MAKEFILE_LIST)

setup:  ## create .venv with the locked dependencies and the project itself
	@tools/setup

services:  ## install the foreign programs and servers that tests run for real (as root, with apt)
	@tools/services

rivals: setup
	@tools/rivals

check: setup  ## format, lint, types and import directions, changing nothing
	@echo "== ruff format --check"; $(BIN)/ruff format --check .
	@echo "== ruff check"; $(BIN)/ruff check .
	@echo "== mypy"; $(BIN)/mypy
	@echo "== lint-imports"; $(BIN)/lint-imports

format: setup  ## format and fix what can be fixed by itself
	@$(BIN)/ruff check --fix --exit-zero --quiet .
	@$(BIN)/ruff format .

test: setup services  ## everything CI checks: `check`, then all tests (SERVICES=none leaves services out)
	@if [[ "$$SERVICES" != none ]]; then tools/rivals; tools/clients; fi
	@$(MAKE) check
	@echo "== pytest"; $(BIN)/python -m pytest $(ARGS)

chaos: setup services  ## break a daemon on purpose; ARGS="--short", ARGS="kill9 --count 50 --seed 7" (docs/chaos.md)
	@$(BIN)/python -m tests.chaos $(ARGS)

bench: rivals  ## measure us beside our rivals; ARGS="--quick", ARGS="--list"
	@tools/clients
	@$(BIN)/python -m bench $(ARGS)

demo: setup  ## import, verify and move an image through a daemon of its own below var/demo
	@$(BIN)/python -m control.demo $(if $(IMAGE),--image '$(IMAGE)') $(ARGS)

openapi: setup  ## write docs/openapi.json from the code
	@$(BIN)/python -m control.api.openapi docs/openapi.json

lock:  ## renew the lock files in requirements/ from pyproject.toml and requirements/*.in
	@tools/lock

clean:  ## remove environments, caches and var/
	rm -rf .venv .venv-* var build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
