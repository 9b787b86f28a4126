# make demo, make test, make check: each installs what it needs into .venv first.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Tests start hundreds of processes, which would compile the program again each.
unexport PYTHONDONTWRITEBYTECODE
INSTALLED := $(VENV)/installed

GENERATED := README.md CONTRIBUTING.md docs/options.md  # in part: their tables, by cog
ROOT_MODULES := $(basename $(wildcard *.py))

.PHONY: install demo test soak check imports format bench screenshots clean

install: $(INSTALLED)

demo: $(INSTALLED)  ## the whole ingest on this machine; DEMO_FLAGS=--no-serve ends by itself
	$(RUN) demo.py $(DEMO_FLAGS)

test: $(INSTALLED)  ## all quick tests; TEST_FLAGS goes to pytest
	$(RUN) -m pytest -n auto --dist worksteal $(TEST_FLAGS)

soak: $(INSTALLED)  ## the slow tests: many kills, many faults
	$(RUN) -m pytest -m soak $(TEST_FLAGS)
	$(RUN) -m pytest --hypothesis-profile=others -m hypothesis $(TEST_FLAGS)

check: $(INSTALLED) imports  ## lint, format, types, the order of imports, tables in documents
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy .
	$(RUN) -m cogapp -P --verbosity 1 --check --diff --check-fail-msg "run make format" $(GENERATED)

imports: $(INSTALLED)  # which takes packages only, so links make one of each module at the root
	rm -rf .cache/imports
	for name in $(ROOT_MODULES); do mkdir -p .cache/imports/$$name && \
		ln -s ../../../$$name.py .cache/imports/$$name/__init__.py || exit 1; done
	cd .cache/imports && PYTHONPATH=../.. ../../$(VENV)/bin/lint-imports --no-logo ../../pyproject.toml

bench: $(INSTALLED)  ## the quick benchmarks, each a table and a JSON file under .bench/
	mkdir -p .bench
	for name in start storage pipeline collection.scale schedule model end_to_end; do \
		$(RUN) -m bench.$$name --json .bench/$$name.json || exit 1; done

screenshots: $(INSTALLED)  ## the pictures in the README; needs Chromium
	mkdir -p .bench
	$(RUN) demo.py --screenshots docs >.bench/demo.txt 2>&1
	sed -n '/^\$$ .*ingest.py/,/Look at them/p' .bench/demo.txt >.bench/commands.txt
	$(RUN) -m testing.browser terminal .bench/commands.txt docs/terminal.png

format: $(INSTALLED)  ## what ruff can correct, and the tables in documents
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
	$(RUN) -m cogapp -r -P --verbosity 1 $(GENERATED)

$(INSTALLED): requirements.txt requirements-dev.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed")'
	@echo "Installing the packages of requirements-dev.txt into $(VENV): about 95, with 2 GB, and more"
	@echo "where torch comes with CUDA. This takes some minutes, once."
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) .bench .cache .demo .hypothesis .mypy_cache .pytest_cache .ruff_cache
