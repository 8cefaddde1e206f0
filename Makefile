PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := build/demo
DEMO_ROWS ?= 64
# Processes that run tests: one more than there are cores, since tests of servers and signals wait a lot.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)

LOWEST := build/lowest
# Fast tests that import every dependency; they need no model that has to be fetched. Schemathesis needs
# newer versions of them.
LOWEST_TESTS := tests/jobs tests/outputs tests/inputs tests/tokenization tests/test_cli.py \
	tests/engines/test_conformance.py tests/models/test_facts.py tests/models/test_gguf.py tests/assess/test_saved_classifier.py \
	tests/serve --ignore tests/serve/test_schemathesis.py -m "not real_model"

.PHONY: install check test fast-tests all-tests dist test-lowest lint docs lock demo clean

install: $(VENV)/.installed

# uv installs from its cache of unpacked wheels in seconds; pip installs where uv finds no index.
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt
PIP_INSTALL := $(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt

$(VENV)/.packhorse: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "packhorse needs Python 3.11 or newer: make PYTHON=python3.11 install")'
	$(PYTHON) -m venv $(VENV)
	-$(BIN)/pip install --quiet --no-compile --disable-pip-version-check uv
	$(INSTALL) -e '.[serve]' || $(PIP_INSTALL) -e '.[serve]'
	touch $@

$(VENV)/.installed: $(VENV)/.packhorse
	$(INSTALL) -e '.[dev]' || $(PIP_INSTALL) -e '.[dev]'
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What to run before every commit: nothing here loads the demonstration model or takes long.
# Types are checked while tests run: mypy has one thread.
check: install
	$(MAKE) --jobs=2 lint fast-tests

test: install
	$(MAKE) --jobs=2 lint all-tests

fast-tests: install
	$(BIN)/pytest -n $(WORKERS) --dist worksteal --durations=5 \
		-m "not slow and not real_model and not browser"

all-tests: install
	$(BIN)/pytest -n $(WORKERS) --dist worksteal

# Writes the parts of the documentation that are generated: the page of --help texts.
docs: install
	$(BIN)/cog -r docs/cli.md

# To install exactly this: pip install -r requirements-dev.lock, then pip install --no-deps -e .
lock: install
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	(sed '/^#/!d' requirements-dev.lock; $(BIN)/uv pip compile --quiet pyproject.toml --extra dev \
		-c constraints.txt --universal --python-version 3.11 --no-annotate --no-header) > $(VENV)/lock
	mv $(VENV)/lock requirements-dev.lock

dist: install
	$(BIN)/pip install --quiet --disable-pip-version-check build
	rm -rf dist
	$(BIN)/python -m build

# The lowest version that pyproject.toml accepts of everything it names, except torch, whose old builds
# are not on every index.
test-lowest:
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct \
		-c constraints-lowest.txt -e '.[serve]'
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python pytest pytest-timeout hypothesis openai
	$(LOWEST)/bin/python -m pytest -p no:cacheprovider -o filterwarnings=default $(LOWEST_TESTS)

# The same rows twice, in float32 and in int8, and what int8 changed.
DEMO_RUN := $(BIN)/packhorse run smollm2-135m-instruct examples/prompts.jsonl --limit $(DEMO_ROWS) --max-new-tokens 32

demo: $(VENV)/.packhorse
	rm -rf $(DEMO)
	mkdir -p $(DEMO)
	$(DEMO_RUN) -o $(DEMO)/float32.jsonl
	$(DEMO_RUN) -o $(DEMO)/int8.jsonl --quantization int8
	$(BIN)/python examples/what_changed.py $(DEMO)/float32.jsonl $(DEMO)/int8.jsonl

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
