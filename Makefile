# `make help` explains each target. Everything runs on a CPU, offline once installed.
PYTHON ?= python3
BIN := .venv/bin
PROMPT ?= a red cube on top of a blue cylinder
DEVICE ?= cpu
EVAL ?=
JOBS ?= 2
PYTEST_TOGETHER = OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(JOBS)
# The tiny networks allocate and free the same few megabytes for ever: let malloc keep them (14 % in training).
export MALLOC_MMAP_THRESHOLD_ := 1073741824
export MALLOC_TRIM_THRESHOLD_ := 4294967296

.PHONY: help setup run demo check test test-all chaos bench eval train-embedded gpu-check manifests clean

help: ## explain each target
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: .venv/.installed ## make .venv with everything the other targets need

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev,postgres,services,deploy]'
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt --no-deps clip-anytorch # CLIP's vocabulary only
	touch $@

run: setup ## run the embedded service in the foreground
	$(BIN)/dreamserve up

demo: setup ## PROMPT="…": start a service, POST the prompt, show progress, write out.glb and out.png, end it
	$(BIN)/dreamserve generate "$$PROMPT" -o out.glb --picture out.png --data-dir build/demo
demo: export PROMPT := $(PROMPT)

check: setup ## formatting, lint, types, import graph
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/unit/test_import_graph.py

test: setup ## the fast tests: offline, no servers (JOBS=2 at a time)
	$(PYTEST_TOGETHER) -m "not slow and not cluster and not gpu"

test-all: setup test ## also the slow ones, and those with Ray, an S3 server and promtool
	$(PYTEST_TOGETHER) --dist worksteal --durations=25 -m "slow or cluster"

chaos: setup ## N=1000 SEED=0: random failures from outside; did any job get lost, doubled or mixed up?
	$(BIN)/python -m tests.chaos $(or $(N),1000) --seed $(or $(SEED),0)

bench: setup ## ratios of one run; also build/bench.json
	$(BIN)/python -m tests.bench

eval: setup ## methods × held-out prompts: table, build/eval.json and contact sheet (EVAL="weak --pairs 40")
	$(BIN)/python -m workers.evaluation $(EVAL)

train-embedded: ## train and export the embedded models (DEVICE=cuda; needs torch, numpy, safetensors only)
	$$(test -x $(BIN)/python && echo $(BIN)/python || echo $(PYTHON)) -m workers.embedded.train --device $(DEVICE)

gpu-check: ## prove engine, prior, field and training on this machine's GPU (CPU if none), without the service's packages
	$$(test -x $(BIN)/python && echo $(BIN)/python || echo $(PYTHON)) -m tests.bench.gpu_check

manifests: setup ## render every overlay of k8s/ and validate it, with Dockerfile, alerts and dashboards
	$(BIN)/hadolint Dockerfile
	$(BIN)/python -m tests.manifests

clean: ## remove what was built (not .venv)
	rm -rf build .mypy_cache .pytest_cache .ruff_cache .hypothesis
