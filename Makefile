# The few words that people type. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Every package is checked against the hashes of requirements/. uv installs in seconds what takes pip a minute. It does not
# read pip's configuration: if it fails, pip installs.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
INSTALL := $(PIP) --require-hashes -r requirements/build.lock && \
  get() { $(BIN)/uv pip install --quiet --python $(BIN)/python "$$@" || $(PIP) "$$@"; } && \
  install() { get --require-hashes -r requirements/$$1.lock && get --no-deps --no-build-isolation -e .; } && install

# Hundreds of processes start in the tests: none compiles what another has compiled. Bytecode stays in .cache.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(CURDIR)/.cache/bytecode

# A plugin that only the tests of the admin API need. Each worker would load it: most of a second.
ALONE := -p no:schemathesis

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-containers cluster suites simulate chaos soak bench check unit format charts protos settings-table lock audit clean

help: ## list these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.local ## start the whole stack on this machine and play the story
	@$(BIN)/tokenweir local up

test: $(VENV)/.dev .cache/tools/.fetched ## lint, types and the tests, in less than eight minutes on two cores
	@$(MAKE) --no-print-directory check suites

test-all: $(VENV)/.dev .cache/tools/.fetched ## the same, with what is rare: all Envoys, thousands of seeds, every width of a browser
	@$(MAKE) --no-print-directory check suites FORM=--thorough

# The tests of metering run by themselves, so that their coverage is theirs; those of real faults last, so that
# nothing else takes the processors' time. Tests of real parts wait more than they compute: four at a time.
suites: $(VENV)/.dev .cache/tools/.fetched
	@echo "== metering and the simulation of faults, in virtual time"
	@$(BIN)/pytest -n 2 -q $(ALONE) $(FORM) tests/metering --cov=extproc/metering --cov-branch --cov-report=term --cov-fail-under=90
	@$(BIN)/pytest -n 2 -q $(ALONE) $(FORM) tests/simulation
	@echo "== real Envoy, Valkey, Redis, MongoDB protocol, Helm, Prometheus, SDKs, a browser"
	@$(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder -q $(FORM) --ignore=tests/core --ignore=tests/metering --ignore=tests/simulation --ignore=tests/chaos tests
	@echo "== real faults, the short form: processes killed and stopped, stores lost"
	@$(BIN)/pytest -n 2 --dist loadfile -q $(ALONE) $(FORM) --ignore=tests/chaos/test_soak.py tests/chaos

test-containers: $(VENV)/.dev ## the stores' contract on a real mongod and Redis, by Docker or by URLs in the environment
	@TESTS_STORES=containers $(BIN)/pytest -q tests/contract

# Not a part of the tests above: it needs a cluster, whose objects it makes and removes. tests/cluster/README.md.
cluster: $(VENV)/.dev .cache/tools/.fetched ## the charts on a cluster: make cluster KUBECONFIG=FILE; ONLY=name runs one test
	@[ -n "$(KUBECONFIG)" ] || { echo "make cluster KUBECONFIG=FILE: the kubeconfig of a cluster admin, on a cluster for tests" >&2; exit 2; }
	@TOKENWEIR_CLUSTER="$(abspath $(KUBECONFIG))" $(BIN)/pytest -q --durations=5 $(FORM) $(if $(ONLY),-k '$(ONLY)') tests/cluster

# One after the other, on a machine of its own: there its bounds in seconds are held to the letter.
chaos: $(VENV)/.dev ## real faults in full size; SEED=7 replays a run, ONLY=name one test; docs/reliability.md has more
	@CHAOS_FORM=full $(BIN)/pytest -q --ignore=tests/chaos/test_soak.py $(if $(ONLY),-k '$(ONLY)') tests/chaos

soak: $(VENV)/.dev ## random faults for MINUTES=10; SEED=7 replays them
	@CHAOS_FORM=full CHAOS_MINUTES=$(or $(MINUTES),10) $(BIN)/pytest -q tests/chaos/test_soak.py

# Real Envoy, and programs in C on the other side: a C compiler is needed, two cores, and a machine that does nothing else.
bench: $(VENV)/.local ## what a request and a chunk cost, beside other designs, in 3 minutes; FORM=--full, FORM=--help
	@$(BIN)/python -m benchmarks $(FORM)

check: $(VENV)/.dev ## what each commit passes: format, lint, types, layers, charts, the core's tests with full coverage
	@echo "== lint, types, layers"
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/hadolint Dockerfile
	@$(BIN)/python charts/generate.py --check
	@echo "== the core's tests, with its branches covered by them alone"
	@$(BIN)/pytest -n 2 -q $(ALONE) $(FORM) tests/core --cov=extproc/core --cov-branch --cov-report=term --cov-fail-under=100

simulate: $(VENV)/.dev ## play one seed of the simulation, step by step: make simulate SEED=1234
	@$(BIN)/python -m tests.simulation $(or $(SEED),0)

unit: $(VENV)/.dev ## the core's tests only
	@$(BIN)/pytest -q tests/core

format: $(VENV)/.dev ## format and fix what can be fixed
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

charts: $(VENV)/.dev ## write each chart's values.schema.json and README anew, from its values.yaml
	@$(BIN)/python charts/generate.py

protos: $(VENV)/.dev ## generate extproc/envoy/pb from protos/
	@$(BIN)/python -m grpc_tools.protoc -I protos --python_out=extproc/envoy/pb --pyi_out=extproc/envoy/pb protos/*.proto

settings-table: $(VENV)/.dev ## write the tables of docs/settings.md anew
	@$(BIN)/python docs/settings_table.py

# `all` decides the versions; the others are parts of it, with the same versions.
LOCK := $(BIN)/uv pip compile --universal --python-version 3.11 --no-annotate --generate-hashes -q --custom-compile-command "make lock"

lock: $(VENV)/.dev ## resolve requirements/*.lock anew, with the hash of every file
	@$(LOCK) --upgrade pyproject.toml requirements/build.in --all-extras -o requirements/all.lock
	@$(LOCK) requirements/build.in -c requirements/all.lock -o requirements/build.lock
	@$(LOCK) pyproject.toml --extra dumper --extra admin -c requirements/all.lock -o requirements/image.lock
	@$(LOCK) pyproject.toml --extra local -c requirements/all.lock -o requirements/local.lock

audit: $(VENV)/.dev ## look the locked packages up in a public database of known vulnerabilities
	@$(BIN)/pip-audit --strict --disable-pip --require-hashes -r requirements/all.lock

clean: ## remove what was built or installed here
	@rm -rf $(VENV) .cache .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

# Debian keeps ensurepip in a package of its own; virtualenv does without.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed")'
	@echo "== making $(VENV)"
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || { rm -rf $(VENV); \
	  $(PYTHON) -m pip install --quiet --target .cache/virtualenv --require-hashes -r requirements/build.lock && \
	  PYTHONPATH=.cache/virtualenv $(PYTHON) -m virtualenv --quiet $(VENV); }

$(VENV)/.local: $(VENV)/bin/python pyproject.toml $(wildcard requirements/*.lock)
	@echo "== installing Tokenweir and the parts of the local stack"
	@$(INSTALL) local && touch $@

.cache/tools/.fetched: tests/charts/tools.txt tests/charts/fetch_tools.py $(VENV)/bin/python
	@echo "== fetching Helm 4, Helm 3 and kubectl"
	@$(BIN)/python tests/charts/fetch_tools.py && touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml $(wildcard requirements/*.lock)
	@echo "== installing Tokenweir, the parts of the local stack and the tools"
	@$(INSTALL) all && touch $@
