# make venv    .venv with everything at the versions of requirements.lock, and the command `homeserver` in it
# make test    everything that must hold: lint, types, import contracts, tests, coverage of federation/
# make demo    two organisations on this machine, and a conversation between them (ARGS="--exit" ends after it)
# make serve   one server, with homeserver.toml or else sample_config.toml (CONFIG=FILE for another)
# make interop a real Synapse as the other organisation; where Node is, the library of Element as the client
# make bench   the measurements
# make lint | lock | clean

SHELL := /bin/bash
# The first Python that is new enough; looked for once, and only where one is needed.
ifndef PYTHON
PYTHON = $(eval PYTHON := $(shell for name in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done))$(PYTHON)
endif
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
WANTED = $(shell cat requirements.lock pyproject.toml | cksum)
CONFIG ?= $(firstword $(wildcard homeserver.toml) sample_config.toml)
ARGS ?=

.PHONY: venv test demo serve interop bench lint lock clean

venv:
	@if [ "$$(cat $(STAMP) 2>/dev/null)" = "$(WANTED)" ]; then echo "$(VENV) is up to date."; else $(MAKE) --no-print-directory $(STAMP); fi

# Where only ensurepip is missing (Debian), venv leaves a half-made folder behind: it is removed, so that the next try starts afresh.
.PHONY: $(STAMP)
$(STAMP):
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.11 or newer is needed, and none was found. Install it (Debian: apt-get install python3 python3-venv)." >&2; exit 1; fi
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		echo "Making $(VENV) with $$($(PYTHON) --version) …"; \
		$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); \
			echo "$(PYTHON) cannot make virtual environments. Install its venv module (Debian: apt-get install python3-venv)." >&2; exit 1; }; \
	fi
	@echo "Installing the versions of requirements.lock …"
	@set -o pipefail; \
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --require-hashes -r requirements.lock 2>&1 \
		| tee $(VENV)/install.log \
		| { n=0; while IFS= read -r line; do case "$$line" in \
			Collecting*) n=$$((n + 1)); ((n % 10)) || echo "  $$n packages downloaded";; \
			"Installing collected packages"*) echo "  unpacking $$n packages";; \
		esac; done; } \
	|| { tail -n 20 $(VENV)/install.log >&2; exit 1; }
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	@echo "$(WANTED)" > $(STAMP)
	@echo "Done: $(BIN)/homeserver"

test: venv lint
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov=homeserver.federation --cov-report=term-missing:skip-covered --cov-fail-under=95 $(ARGS)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

demo: venv
	$(BIN)/homeserver demo $(ARGS)

serve: venv
	$(BIN)/homeserver serve --config $(CONFIG) $(ARGS)

interop: venv
	$(BIN)/python tests/interop/run.py $(ARGS)

bench: venv
	$(BIN)/python -m tests.bench $(ARGS)

# Needs uv. Keeps what is pinned unless ARGS="--upgrade".
lock:
	uv pip compile pyproject.toml --extra test --extra build --universal --python-version 3.11 --generate-hashes \
		--no-annotate --no-header --no-emit-index-url --no-emit-find-links --output-file requirements.lock $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage htmlcov
