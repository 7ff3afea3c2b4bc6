# `make demo` and `make test` need nothing but Python 3.11 to 3.13, pip and make; the rest is made here.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

LOWEST ?= .venv-lowest
# A file stays with one worker, which sets up its servers, runs and models once. The long files come first.
WORKERS := -n auto --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all test-lowest coverage gpu check fix docs clean

demo: $(VENV)/.installed
	$(BIN)/mft demo --out demo

# What a change needs before it is sent: every kind of test once, in minutes. Many containers set PYTHONDONTWRITEBYTECODE, and the
# hundred processes of the tests would each compile the package anew.
test: $(VENV)/.installed
	$(BIN)/python -m compileall -q src
	$(BIN)/python -m pytest $(WORKERS) -m "not slow"

# All tests, those marked slow too: more ranks, backends, languages and attacks.
test-all: $(VENV)/.installed
	$(BIN)/python -m pytest $(WORKERS)

# The oldest versions that pyproject.toml allows: all unit tests and one run from data to scores. Old libraries warn more.
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest $(WORKERS) -o filterwarnings= --disable-warnings tests/unit tests/integration/test_train_cli.py

# Which lines and branches the fast tests run, with all processes that they start; a table, the least covered file first.
coverage: export COVERAGE_FILE = $(CURDIR)/.coverage/data
coverage: $(VENV)/.installed
	rm -rf .coverage
	mkdir .coverage
	$(BIN)/python -m coverage run -m pytest $(WORKERS) -m "not slow" tests/unit tests/integration
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

# On a GPU: tests/gpu, then a table of training speeds, in nine minutes. Takes the environment here, or the Python that has your torch.
gpu:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) performance/gpu.py $(GPU_OPTIONS)

check: $(VENV)/.installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

fix: $(VENV)/.installed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: $(VENV)/.installed
	$(BIN)/python docs/generate.py

# The environment is complete when the marker stands; an install that was cut short is taken up again.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all]'
	touch $@

$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-lowest.txt \
	  --editable '.[train,hub,curate,gguf,sentencepiece,qlora]' pytest pytest-xdist hypothesis
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) .cache .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis demo runs build dist
