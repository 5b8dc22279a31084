# make demo: set up, train on the embedded digits, sample, write the report
# make test: set up, run every check
# make notebooks: run those in examples/ at their full size, and keep what comes out in them
# make bench: run every benchmark that this machine can; BENCH=--list shows them, --quick tries them

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := runs/digits
NOTEBOOKS := examples/gmm.ipynb examples/own_images.ipynb
CELL_SECONDS := 300

.PHONY: help install demo test lint notebooks bench clean

help:
	@sed -n 's/^# //p' Makefile

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "setting up $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "inkdrop needs Python 3.11 or newer: make PYTHON=python3.11 …"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	@began=$$(date +%s); \
	$(BIN)/inkdrop train digits --out $(DEMO) && \
	$(BIN)/inkdrop sample $(DEMO) --trajectory && \
	$(BIN)/inkdrop report $(DEMO) && \
	took=$$(( $$(date +%s) - began )) && \
	echo && \
	echo "A diffusion model of handwritten digits, trained on this machine in $${took} s:" && \
	echo "  $(DEMO)/report.html   pictures, figures and the configuration on one page" && \
	echo "  $(DEMO)/samples/      64 new digits, their grid, and how they came about" && \
	echo "Next: $(BIN)/inkdrop sample $(DEMO) -n 16 --seed 1 --sampler ancestral"

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

# Two single-threaded workers use two cores better than two threads do on networks this small.
# The notebooks take longest: they come first, and a worker takes over what lies behind them.
test: lint
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal --cov --cov-report term \
		--nbmake --nbmake-timeout $(CELL_SECONDS) $(NOTEBOOKS) tests

# `jupyter execute` would write the times of day into them.
notebooks: $(STAMP)
	@for notebook in $(NOTEBOOKS); do \
		INKDROP_FULL=1 OMP_NUM_THREADS=1 $(BIN)/python -c 'import sys, nbclient, nbformat; \
			notebook = nbformat.read(sys.argv[1], 4); \
			nbclient.execute(notebook, record_timing=False, timeout=None); \
			nbformat.write(notebook, sys.argv[1])' $$notebook || exit 1; \
	done

bench: $(STAMP)
	@$(BIN)/python -c 'from importlib.util import find_spec as f; exit(not (f("diffusers") and f("accelerate")))' || \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	@$(BIN)/python benchmarks/run_all.py $(BENCH)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage*
