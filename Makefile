# The same commands on a laptop and in CI. `make` alone lists them.

PYTHON ?=
VENV   := .venv
BIN    := $(VENV)/bin
# What has been installed into .venv; both are made again when pyproject.toml changes.
RUN    := $(VENV)/.installed
DEV    := $(VENV)/.installed-dev
# All programs that need nothing but this machine: no GPU, no other tool, no arguments.
BENCH  ?= $(filter-out benchmarks/gpu_% $(addprefix benchmarks/,bench_crosscheck.py engine_checks.py fit_accuracy.py random_checkpoint.py),$(wildcard benchmarks/*.py))

# Where the tests' engines are kept.
ENGINES := $(CURDIR)/.cache/engines

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test lint types imports protos-check docs-check unit engine-env test-base kubernetes test-kubernetes format protos docs bench venv clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(RUN) ## train a tiny chat model, serve it, ask it something (PYTHON=... picks the Python)
	@$(BIN)/python scripts/demo.py

test: lint types imports protos-check docs-check unit ## everything CI runs

lint: $(DEV) ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(DEV) ## mypy, strict
	$(BIN)/mypy
	$(BIN)/mypy scripts

imports: $(DEV) ## imports point one way (import-linter)
	$(BIN)/lint-imports --no-logo

protos-check: $(DEV) ## proto/ is clean and the generated stubs are fresh
	cd proto && ../$(BIN)/buf lint
	$(BIN)/python scripts/generate_protos.py --check

docs-check: $(DEV) ## docs/ and the JSON schema are what the config models say
	$(BIN)/python scripts/generate_config_docs.py --check

unit: $(DEV) ## pytest; choose with ARGS="tests/unit -k codec" (tests of vLLM need `make engine-env` once)
	MODELKIT_TEST_VLLM_PYTHON="$$(ls $(ENGINES)/vllm-*/bin/python 2>/dev/null | tail -n 1)" $(BIN)/python -m pytest $(ARGS)

engine-env: $(DEV) ## install vLLM into .cache/engines, for the tests that serve with it (2 GB)
	MODELKIT_ENGINES_DIR=$(ENGINES) $(BIN)/modelkit engines install vllm

test-base: $(DEV) ## make the base image for the tests that build images (mmdebstrap, once)
	$(BIN)/python scripts/make_test_base.py

kubernetes: ## build the Kubernetes that tests deploy to, from Debian's source package (once, 10 minutes, 460 MB)
	scripts/kubernetes/build.sh $(MODELKIT_TEST_KUBERNETES)

test-kubernetes: $(DEV) kubernetes ## the tests that deploy to a real Kubernetes (root)
	$(BIN)/python -m pytest tests/integration/test_kubernetes.py $(ARGS)

format: $(DEV) ## rewrite the sources as ruff wants them
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

protos: $(DEV) ## write the gRPC stubs from proto/
	$(BIN)/python scripts/generate_protos.py

docs: $(DEV) ## write the generated parts of docs/
	$(BIN)/python scripts/generate_config_docs.py

bench: $(DEV) ## measure beside others on this machine; choose with BENCH=benchmarks/startup.py
	$(BIN)/python examples/tiny-chat/train.py
	@for file in $(BENCH); do echo "== $$file"; $(BIN)/python $$file || exit 1; done

venv: $(DEV) ## only make .venv, with everything

clean: ## remove what the commands above made
	rm -rf $(VENV) .cache dist examples/tiny-chat/checkpoint
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# What it takes to run: the project, torch for this machine, transformers, at the versions that the template was tested
# with, so that a new release of theirs is taken up on purpose.
$(RUN): pyproject.toml scripts/install_torch.py scripts/make_venv.sh templates/transformers/requirements.txt
	@scripts/make_venv.sh $(VENV) $(PYTHON)
	$(BIN)/python scripts/install_torch.py
	$(BIN)/python -m pip install --quiet --constraint templates/transformers/requirements.txt --editable '.[transformers,bench]'
	@touch $@

# And what it takes to change it: linters, the type checker, the test tools.
$(DEV): $(RUN)
	$(BIN)/python -m pip install --quiet --group dev
	@touch $@
