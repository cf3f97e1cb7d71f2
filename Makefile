# Needs only Python (3.11 or newer), pip and make.
#
#   make setup      an environment of its own in .venv, everything pinned in constraints.txt
#   make demo       a real photo segmented by words; yours: make demo PHOTO=street.jpg CLASSES="sky, road | street, car"
#   make test       format, lint, types, the quick tests, the demo
#   make test-all   the slow tests too
#   make docs       the documentation as a site, in out/site
#   make format     puts the code in order

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CODE := src tests tools benchmarks

# One thread per test process: the tests run in two processes, and small models gain nothing from more.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
TESTS := 2

# What `make demo` may be given. They reach the recipe through the environment, where any quoting is safe.
PHOTO =
CLASSES =
MODEL = street-tiny
TASK = semantic
OUT = out/demo
export PHOTO CLASSES MODEL TASK OUT

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all docs format check

help:
	@sed -n '2,8s/^# \{0,1\}//p' Makefile

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Lexiseg needs Python 3.11 or newer. Name one: make setup PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[train,transformers,mine,ray,serve,export,docs,supervision,parquet,geo,dev]'
	@touch $@

# Without a photo: china.jpg, which scikit-learn carries (photo by danielbuechele, CC BY 2.0).
demo: $(INSTALLED)
	@set -e; \
	photo="$$PHOTO"; classes="$$CLASSES"; \
	if [ -z "$$photo" ]; then \
	  photo=$$($(BIN)/python -c 'import sklearn, os; print(os.path.dirname(sklearn.__file__))')/datasets/images/china.jpg; \
	  : "$${classes:=sky, tree, building | temple, lake | water}"; \
	  echo "Photo: china.jpg by danielbuechele, CC BY 2.0 (from scikit-learn). Words: $$classes"; \
	fi; \
	: "$${classes:=sky, building, road | street, sidewalk, tree, grass, water, car, person}"; \
	$(BIN)/lexiseg segment "$$photo" --classes "$$classes" --task "$$TASK" --model "$$MODEL" --out "$$OUT"; \
	echo "The pictures are in $$OUT:"; ls "$$OUT"

check: $(INSTALLED)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy

test: check
	$(ONE_THREAD) $(BIN)/python -m pytest -q -n $(TESTS) --dist loadfile -m "not slow and not gpu"
	$(MAKE) --no-print-directory demo PHOTO= CLASSES=

test-all: check
	$(ONE_THREAD) $(BIN)/python -m pytest -q -n $(TESTS) --dist loadfile
	$(MAKE) --no-print-directory demo PHOTO= CLASSES=

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Open out/site/index.html; with the search: $(PYTHON) -m http.server --directory out/site"

format: $(INSTALLED)
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)
