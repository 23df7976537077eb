# Every target makes the environment where it is missing; where it is current, that costs a fraction of a second.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
bin := .venv/bin
# The only address in this repository: where pip finds torch's CPU build when the configured index has none.
export TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: help setup environment lock test-fast test test-slow lint

help:
	@echo "make setup      the environment in .venv, from requirements/cpu.txt"
	@echo "make test       everything that one vLLM server can serve (about ten minutes)"
	@echo "make test-fast  only what needs no server (under two minutes)"
	@echo "make test-slow  server faults, architectures, launches"
	@echo "make lint       ruff, mypy, import directions, configuration reference"
	@echo "make lock       resolve requirements/cpu.txt again from pyproject.toml"

setup:
	@bash requirements/setup.sh

environment:
	@QUIET=1 bash requirements/setup.sh

lock: environment
	@bash requirements/lock.sh

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
