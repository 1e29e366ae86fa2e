# SPDX-License-Identifier: GPL-2.0-or-later
# Everything from a fresh clone: `make demo` and `make test` install what they need first.
# Each step is skipped when nothing changed, so the targets can be called at any time.
PYTHON  ?= $(firstword $(foreach name,python3.11 python3,$(shell command -v $(name))))
VENV    := .venv
BIN     := $(VENV)/bin
SOURCES := src tests tools hatch_build.py
# The C parts do not depend on each other.
NATIVE   = $(MAKE) -s --no-print-directory -C native -j$(shell nproc)
C_FILES  = $(shell git ls-files 'native/*.c' 'native/*.h')
# What `make bench` measures, names of tools/measure.py; all by default.
ONLY    ?=
# How long `make soak` keeps going, in seconds, and the GiB that cross the local fast path then.
SOAK    ?= 1200
STREAMS ?= 100

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 18

setup: packages-all install ## install and build everything; .venv/bin/fastsocket is the command
	@echo "ready: $(BIN)/fastsocket"

demo: packages-run install ## the two-minute tour: stock, SO_REUSEPORT and Fastsocket side by side
	$(BIN)/fastsocket demo

test: packages-all install ## run every test that this machine supports
	$(BIN)/pytest --require-kinds $(PYTEST_ARGS)

lint: packages-all install ## formatting, lint, types, C warnings, machine paths
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	clang-format-14 --dry-run -Werror $(C_FILES)
	$(NATIVE) --always-make OUT=out
	$(BIN)/python tools/check_paths.py

format: packages-all install ## rewrite the sources as lint wants them
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)
	clang-format-14 -i $(C_FILES)

bench: packages-all install ## measure on this machine and write the figures into README and docs (an hour)
	$(BIN)/python tools/measure.py $(ONLY)

soak: packages-all install ## servers in random trouble for SOAK seconds, STREAMS GiB past TCP, machines of 24 CPUs
	$(BIN)/python tools/soak.py --seconds $(SOAK)
	FASTSOCKET_FLOOD=60000 $(BIN)/pytest -q tests/apps/test_deliver.py
	FASTSOCKET_STREAM_GIB=$(STREAMS) $(BIN)/pytest -q -s tests/netns/test_local_streams.py
	FASTSOCKET_VM_CPUS=24 $(BIN)/pytest -q tests/kernel/test_steer.py

man: install ## write docs/fastsocket.1 from the commands' own help
	$(BIN)/python tools/manpage.py

lock: packages-all install ## renew requirements.lock (the only target that asks for newer packages)
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --quiet --upgrade --all-extras --generate-hashes --no-header \
		--no-emit-index-url --no-annotate --python-version 3.11 --python-platform linux \
		pyproject.toml -o requirements.lock

clean: ## remove what was built, and the virtual environment
	rm -rf $(VENV) dist native/out src/fastsocket/_native .mypy_cache .ruff_cache .pytest_cache

packages-run:
	@$(PYTHON) tools/packages.py build run

packages-all:
	@$(PYTHON) tools/packages.py build run test

# The stamps live in the environment: when it goes, they go.
$(BIN)/.locked: requirements.lock
	@$(PYTHON) -m venv $(VENV)
	@echo "installing the Python packages of requirements.lock"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

$(BIN)/.installed: $(BIN)/.locked pyproject.toml hatch_build.py
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

# Packages first: without python3-venv there is no environment, also under make -j.
install: | packages-run
	@$(MAKE) -s --no-print-directory $(BIN)/.installed
	@$(NATIVE)
	@$(BIN)/python -m compileall -q src  # as pip does: else, where writing bytecode is off, each start compiles

.NOTPARALLEL:
.PHONY: help setup demo test lint format bench soak man lock clean packages-run packages-all install
