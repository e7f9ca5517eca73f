# Two commands: `make size-grid` runs the demo sweep, `make test` runs every test. Both set up .venv first.
PYTHON ?= python3
VENV := .venv

.PHONY: size-grid test test-fast lint

size-grid: $(VENV)/.installed
	$(VENV)/bin/python sweeps/size_grid.py

test: lint
	$(VENV)/bin/pytest -q -n 3 --dist loadfile --no-loadscope-reorder --durations 25

test-fast: $(VENV)/.installed-test
	$(VENV)/bin/pytest -q -m "not slow"

lint: $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing into $(VENV) (about 7 GB with PyTorch; some minutes the first time) ..."
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@
