PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := build/demo
# Processes that run tests: one more than there are cores, since tests of servers and signals wait a lot.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)

LOWEST := build/lowest
# Fast tests that import every dependency; they need no model that has to be fetched.
LOWEST_TESTS := tests/jobs tests/outputs tests/inputs tests/tokenization tests/test_cli.py \
	tests/engines/test_conformance.py tests/models/test_facts.py tests/models/test_gguf.py tests/assess/test_saved_classifier.py \
	tests/serve

.PHONY: install check test dist test-lowest lint demo clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "packhorse needs Python 3.11 or newer: make PYTHON=python3.11 install")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What to run before every commit: nothing here loads the demonstration model or takes long.
check: install lint
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -m "not slow and not real_model and not browser"

test: install lint
	$(BIN)/pytest -n $(WORKERS) --dist worksteal

dist: install
	$(BIN)/pip install --quiet --disable-pip-version-check build
	rm -rf dist
	$(BIN)/python -m build

# The lowest version that pyproject.toml accepts of everything it names, except torch, whose old builds
# are not on every index.
test-lowest:
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct \
		-c constraints-lowest.txt -e '.[serve]'
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python pytest pytest-timeout hypothesis
	$(LOWEST)/bin/python -m pytest -p no:cacheprovider -o filterwarnings=default $(LOWEST_TESTS)

demo: install
	rm -rf $(DEMO)
	mkdir -p $(DEMO)
	$(BIN)/packhorse run smollm2-135m-instruct examples/prompts.jsonl -o $(DEMO)/answers.jsonl --max-new-tokens 32

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
