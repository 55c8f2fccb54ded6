# Everything a contributor runs. `make help` lists the targets.
PYTHON ?= python3
VENV   ?= .venv
PY     ?= $(VENV)/bin/python
STAMP  := $(VENV)/.installed
PYTEST_ARGS ?=
GPU_CHECK_ARGS ?=

PROTOS    := $(wildcard proto/*.proto)
PROTO_OUT ?= proto

.DEFAULT_GOAL := help
.PHONY: help setup demo test explore test-slow gpu-check lint format proto results

help: ## list these targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'
	@echo "  PYTHON=python3.12 picks the interpreter; PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu"
	@echo "  takes torch's small build for machines without a GPU."

setup: $(STAMP) ## make .venv and install Penstock with its development tools

# The constraints must stand in the same command as the install: a bare `torch` takes the newest, gigabytes of CUDA.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Penstock needs Python 3.11 or newer: make PYTHON=..." >&2; exit 2; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || { echo "no venv module: apt-get install python3-venv" >&2; exit 2; }
	$(PY) -m pip install --quiet -c constraints.txt setuptools
	$(PY) -m pip install --quiet --no-build-isolation -c constraints.txt -e '.[all,dev]'
	@touch $@

demo: setup ## one request through a cluster on this machine, moved while it runs
	$(PY) -m penstock.benchmarks.demo

test: setup lint ## formatting, lint, types and every test that is not slow
	$(PY) -m pytest -n 2 $(PYTEST_ARGS)

explore: setup ## every order of events of a handover: states explored and depth of each scenario
	$(PY) -m pytest -q -n 2 tests/handover/test_exploration.py $(PYTEST_ARGS)

test-slow: setup ## the long tests: explorations, compiled kernels, what a cluster survives
	$(PY) -m pytest -m slow --timeout 3600 $(PYTEST_ARGS)

# From a checkout that is not installed; Python 3.11 or newer, torch with its Triton, transformers, click and rich suffice:
#   d=$(mktemp -d) && ln -s "$PWD" $d/penstock && PYTHONPATH=$d python3 -m penstock.benchmarks.gpu_check [--json]
gpu-check: ## kernels and engine on this machine's GPU: right, and how fast; without Ray, and without `make setup`
	@d=$$(mktemp -d) && trap 'rm -rf $$d' EXIT && ln -s "$(CURDIR)" $$d/penstock && \
	PYTHONPATH=$$d $(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m penstock.benchmarks.gpu_check $(GPU_CHECK_ARGS)

lint: setup ## formatting, lint and types, changing nothing
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m pyright

format: setup ## format, and mend what lint can mend
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

results: setup ## benchmarks/RESULTS.md and its pictures from benchmarks/results
	$(PY) -m penstock.benchmarks.summary

# Mapping proto/ to penstock/proto makes the generated imports work unrewritten; the mapped path is also where protoc
# writes, hence the detour through a temporary directory. Only a missing .venv triggers setup: a test calls this target.
proto: | $(if $(wildcard $(PY)),,setup) ## generate proto/*_pb2*.py and .pyi from proto/*.proto
	@out=$$(mktemp -d) && trap 'rm -rf $$out' EXIT && mkdir -p $(PROTO_OUT) && \
	$(PY) -m grpc_tools.protoc -Ipenstock/proto=proto --python_out=$$out --pyi_out=$$out --grpc_python_out=$$out \
		$(PROTOS:%=penstock/%) && cp $$out/penstock/proto/* $(PROTO_OUT)/
