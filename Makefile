# Python 3.10 or newer with pip is all that a new machine needs.
PYTHON ?= python3
# A C compiler builds bgem3's CPU operators; without one, ONNX Runtime's serve.
# A plain torch from PyPI brings the CUDA libraries on Linux; set TORCH or pip's index options for a CPU build.
TORCH ?= torch==2.13.0
# cpu or gpu: which ONNX Runtime the virtual environment gets.
DEVICE ?= cpu
CHECKPOINT ?=
VENV := .venv
BIN := $(VENV)/bin
# Python compiles modules when they are first imported, which is quicker than compiling all of them.
PIP_INSTALL := python -m pip install --quiet --disable-pip-version-check --no-compile
# The clients of vector databases have an environment of their own.
INTEGRATIONS := .venv-integrations

.PHONY: help setup demo test test-integrations test-full test-stress test-gpu lint types bench bench-gpu render docs clean
help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 20

setup: $(VENV)/.ready ## make the virtual environment with everything in it

$(VENV)/.ready: pyproject.toml $(wildcard runtime/kernels/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(PIP_INSTALL) "$(TORCH)"
	$(BIN)/$(PIP_INSTALL) --editable ".[$(DEVICE),export,test]"
	touch $@

demo: setup ## checkpoint -> export -> four scores, on a small built-in checkpoint (or CHECKPOINT=BAAI/bge-m3)
	$(BIN)/python scripts/demo.py $(CHECKPOINT)

test: setup ## the tests, on up to four CPUs
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal \
		-m "not full and not gpu and not stress and not integrations"

test-integrations: $(INTEGRATIONS)/.ready ## the tests with clients of vector databases, without PyTorch
	$(INTEGRATIONS)/bin/python -m pytest -m integrations --confcutdir tests/integrations tests/integrations

$(INTEGRATIONS)/.ready: $(VENV)/.ready
	$(PYTHON) -m venv $(INTEGRATIONS)
	$(INTEGRATIONS)/bin/$(PIP_INSTALL) --editable ".[$(DEVICE),integrations]"
	$(BIN)/python -c "from scripts.make_demo_checkpoint import make_demo_checkpoint as make; make('$(INTEGRATIONS)/checkpoint')"
	$(BIN)/bgem3 export $(INTEGRATIONS)/checkpoint $(INTEGRATIONS)/artifact --precision fp32 --overwrite
	touch $@

test-full: setup ## the tests that need a full-size model (10 GB of disk, 8 GB of memory, half an hour)
	$(BIN)/python -m pytest -m full

test-stress: setup ## races, kills and interrupts, hundreds of times (about ten minutes)
	$(BIN)/python -m pytest -m stress

test-gpu: setup ## the tests that need a CUDA device (make clean first, then DEVICE=gpu)
	$(BIN)/python -m pytest -m gpu

lint: setup ## ruff and clang-format: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror runtime/kernels/*.[ch] runtime/kernels/*.inl tests/kernels/*.c

types: setup ## mypy, strict
	mkdir -p .types/bgem3
	for stage in export runtime scoring; do ln -sfn ../../$$stage .types/bgem3/$$stage; done
	$(BIN)/mypy

bench: setup ## bgem3 beside every other encoder: an hour or two, 30 GB of disk; QUICK=1: two rivals, two minutes
	$(BIN)/python $(if $(QUICK),-m benchmarks run --quick,scripts/bench_latency.py)

bench-gpu: setup ## everything that only a CUDA device can show (DEVICE=gpu)
	$(BIN)/python -m benchmarks gpu

render: setup ## write the benchmarks' tables and charts from the reports in benchmarks/results
	$(BIN)/python -m benchmarks report

docs: setup ## check that README, docstrings and examples run
	$(BIN)/python -m pytest tests/test_documentation.py

clean: ## remove what the other targets made
	rm -rf $(VENV) $(INTEGRATIONS) runtime/*.so .types .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
