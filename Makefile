# Every target makes the environment where it is missing; where it is current, that costs a fraction of a second.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
bin := .venv/bin
# The only address in this repository: where pip finds torch's CPU build when the configured index has none.
export TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: help setup environment lock demo axes presets bench test-fast test test-slow lint

help:
	@echo "make setup      the environment in .venv, from requirements/cpu.txt"
	@echo "make demo       a base model learns to search longer, on real vLLM, and a report of it"
	@echo "make axes       both scaling axes measured properly (an hour or more), into docs/results/axes"
	@echo "make presets    every algorithm on the demo's task (an hour or more), into docs/results/presets"
	@echo "make bench      every benchmark in benchmarks/, one after the other, for a quiet machine"
	@echo "make test       everything that one vLLM server can serve"
	@echo "make test-fast  only what needs no server"
	@echo "make test-slow  server faults, architectures, launches"
	@echo "make lint       ruff, mypy, import directions, configuration reference"
	@echo "make lock       resolve requirements/cpu.txt again from pyproject.toml"

setup:
	@bash requirements/setup.sh

environment:
	@QUIET=1 bash requirements/setup.sh

lock: environment
	@bash requirements/lock.sh

# Without vLLM (macOS) the demo alone falls back to transformers, and says so; `ponder train` never switches by itself.
demo: environment
	@sampler=vllm; $(bin)/python -c "import importlib.util as u, sys; sys.exit(u.find_spec('vllm') is None)" || { \
	    sampler=transformers; echo "demo: vLLM is not installed, so chains are sampled with transformers"; }; \
	$(bin)/ponder train configs/demo.yaml --overwrite sampler=$$sampler

bench: environment
	@for name in learner eval_overhead verifiers; do $(bin)/python benchmarks/$$name.py; done

presets: environment
	@$(bin)/python benchmarks/presets.py --out docs/results/presets

axes: environment
	@$(bin)/ponder train configs/axes.yaml --overwrite
	@for seed in 2 3; do \
	    $(bin)/ponder train configs/demo.yaml --overwrite run.name=axes-seed-$$seed seed=$$seed eval.controls=false; \
	done
	@keep() { mkdir -p $$2/eval; cp $$1/config.yaml $$1/metrics.jsonl $$1/summary.json $$2/; cp $$1/eval/*.json $$2/eval/; }; \
	keep runs/axes docs/results/axes; \
	for seed in 2 3; do keep runs/axes-seed-$$seed docs/results/axes/seed-$$seed; done
	@$(bin)/ponder scaling docs/results/axes

test-fast: environment
	@$(bin)/pytest -m "not vllm and not slow" --timeout 120

test: environment
	@$(bin)/pytest -m "not slow"

test-slow: environment
	@$(bin)/pytest -m slow

lint: environment
	@$(bin)/ruff check --quiet .
	@$(bin)/ruff format --check --quiet .
	@$(bin)/mypy --no-error-summary
	@$(bin)/ponder config docs --check
	@$(bin)/pytest -q tests/test_layout.py
	@echo "lint: clean"
