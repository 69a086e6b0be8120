# Needs Python >= 3.11 and a network. PYTHON=python3.12 make … picks another interpreter.
PYTHON ?= python3
VENV := .venv
LOWEST := .venv-lowest
# Each process takes tests that stand together, for they share what is made for a file of tests only once.
PARALLEL := -n 2 --dist worksteal
BIN := $(VENV)/bin

.PHONY: demo docs faults test test-all coverage test-lowest lint types contracts dist clean

demo: $(VENV)/.installed
	$(BIN)/wsi-saliency run sample_data/tumour_nests.svs --model demo -o demo-output --overwrite
	@echo
	@echo "Look at:"
	@echo "  demo-output/tumour_nests/overview.png         the slide, and the map over it"
	@echo "  demo-output/tumour_nests/report.html          a page to look through in a browser"
	@echo "  demo-output/tumour_nests/overlay.groovy       lays the map over the slide in QuPath: drag it onto the window"
	@echo "  demo-output/tumour_nests/saliency.ome.tif     the map for QuPath, Bio-Formats, OMERO"
	@echo "  demo-output/tumour_nests/saliency.ome.zarr    the map for napari, viv, neuroglancer"
	@echo "  demo-output/tumour_nests/tiles.csv            the patches and what the classifier says of them"

# The pages of docs/ as a site in build/docs; a link that leads nowhere is an error.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open build/docs/index.html"

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

test-all: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(PARALLEL)

# Lines and branches that no test takes; what is run in processes of their own is not seen. Fails below the floor that
# pyproject.toml sets.
coverage: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(PARALLEL) --cov

# With the lowest versions that pyproject.toml allows. Python 3.11: for later ones some of them have no wheels.
# Needs 6 GB of disk; what such old packages deprecate is not looked at.
test-lowest: $(LOWEST)/.installed-test
	$(LOWEST)/bin/python -m pytest $(PARALLEL) -W ignore::DeprecationWarning

# Runs that are killed, slides that are damaged or odd, full disks; prints what was lost. Takes a quarter of an hour.
faults: $(VENV)/.installed-test
	$(BIN)/python benchmarks/faults.py

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

contracts: $(VENV)/.installed-test
	$(BIN)/lint-imports

# The wheel is built from the sdist, so that the sdist is known to be complete.
dist: $(VENV)/.installed-test
	rm -rf dist
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf $(VENV) $(LOWEST) demo-output build dist .coverage .*_cache

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: PYTHON=python3.12 make …")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[test]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[docs]'
	touch $@

$(LOWEST)/.installed-test: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "PYTHON=python3.11 make test-lowest")'
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install -q uv
	$(LOWEST)/bin/uv pip install -q --python $(LOWEST)/bin/python --resolution lowest-direct -e '.[test]'
	touch $@
