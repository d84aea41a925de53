# `make help` prints the lines that begin with "#:".
#: make demo      runs two organisations on this machine, and a conversation between them (ARGS=--exit ends after it)
#: make serve     runs one server, with homeserver.toml or else sample_config.toml (CONFIG=FILE for another)
#: make test      runs all checks: lint, types, import contracts, tests, coverage of federation/
#:                (ARGS="PATH …" runs only the tests in these files or folders;
#:                --hypothesis-profile=deep among them tries ten times as many examples, --workers 3 runs three at once)
#: make venv      only sets up .venv with the packages of requirements.lock, and the command homeserver in it
#: make lint      runs ruff (rules and format), mypy and the import contracts
#: make interop   tests with a real Synapse as the other organisation, and with matrix-nio, mautrix and (if Node is
#:                installed) matrix-js-sdk and matrix-bot-sdk as clients, most of which also encrypt, and an OpenID
#:                provider; with Element, the chat page and the account pages in a browser if Chromium is installed
#: make bench     runs the benchmarks
#: make lock      updates both lock files after a change of pyproject.toml (ARGS=--upgrade takes the newest versions)
#: make check-lock  installs the locks with the oldest pip that is supported, and with the newest
#: make clean     removes .venv and all other generated files

SHELL := /bin/bash
.DEFAULT_GOAL := help
# The first Python that is new enough and complete. Only the goals that need one search for it.
ifndef PYTHON
PYTHON = $(eval PYTHON := $(shell for name in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$name -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && exit; done; \
	uv python find --no-python-downloads '>=3.11' 2>/dev/null))$(PYTHON)
endif
BIN := .venv/bin
CONFIG ?= $(firstword $(wildcard homeserver.toml) sample_config.toml)
ARGS ?=
export INSTALLER
# Tests start hundreds of processes. Without bytecode, each would compile every module that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help venv venv-test test demo serve interop bench lint lock check-lock clean

help:
	@sed -n 's/^#: //p' Makefile

venv venv-test:
	@if [ -z "$(PYTHON)" ]; then bash .ci/python-missing.sh "make $(MAKECMDGOALS)" >&2; exit 1; fi
	@"$(PYTHON)" .ci/environment.py $(if $(findstring test,$@),test,run) --again "make $(MAKECMDGOALS)"

LINT := $(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports --no-cache

ifeq ($(strip $(ARGS)),)
# One worker more than the two cores that this is meant for: tests that start programs spend much of their time waiting.
# Lint runs beside the tests, and prints when it has ended. The first failure of either fails the goal, after both.
test: venv-test
	@(said=$$( ($(LINT)) 2>&1 ); status=$$?; printf '\nmake lint:\n%s\n' "$$said"; exit $$status) & \
	$(BIN)/python -m pytest --workers 3 --cov=homeserver.federation --cov-report=term-missing:skip-covered --cov-fail-under=99; \
	tests=$$?; wait $$!; lint=$$?; \
	[ $$lint = 0 ] || echo "make lint failed, see above."; \
	exit $$((tests || lint))
else
test: venv-test
	$(BIN)/python -m pytest $(ARGS)
endif

lint: venv-test
	$(LINT)

demo: venv
	$(BIN)/homeserver demo $(ARGS)

serve: venv
	$(BIN)/homeserver serve --config $(CONFIG) $(ARGS)

interop: venv-test
	$(BIN)/python tests/interop/run.py $(ARGS)

bench: venv-test
	$(BIN)/python -m tests.bench $(ARGS)

LOCK := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --quiet \
	--no-annotate --no-header --no-emit-index-url --no-emit-find-links $(ARGS)

lock:
	@uv --version >/dev/null 2>&1 || { echo "make lock needs uv, which is not installed."; echo "Run: pipx install uv && make lock"; exit 1; } >&2
	$(LOCK) --extra build --output-file requirements.lock
	$(LOCK) --extra build --extra test --constraints requirements.lock --output-file tests/requirements.lock

check-lock:
	@"$(PYTHON)" .ci/check_lock.py

clean:
	rm -rf .venv .venv-* .node-* build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis .coverage htmlcov
