# make demo   from nothing to a one-step generator with numbers and pictures
# make test   the fast tests, in about six minutes on two cores
# make test-all  all tests, in about seventeen
# make check  style, types, layers, links
# make docs   the site, into build/site
# make mutants  breaks the code, one place at a time: hand-picked mutants first, then mutmut's, which take an hour or two

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Threads that spin while they wait cost three times their work where cores are few.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test test-all check docs mutants install clean

install: $(VENV)/.installed

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is %d.%d: set PYTHON=" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

# What the demo needs, which is a part of what the tests need.
$(VENV)/.for-demo: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo]'
	touch $@

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# Without its torchvision, which does not import beside every build of torch and then breaks transformers; the tests
	# do without it.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps torch-fidelity
	touch $@

demo: $(VENV)/.for-demo
	$(BIN)/facm demo

test: install
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: install
	$(BIN)/python -m pytest -n 2

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/links.py

docs: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

mutants: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[mutants]'
	$(BIN)/python tools/mutants.py --jobs 2
	$(BIN)/mutmut run --max-children 2
	$(BIN)/mutmut results

clean:
	rm -rf $(VENV) build dist mutants *.egg-info
