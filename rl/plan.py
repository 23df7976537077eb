"""`--dry-run`: check everything that can be checked without starting anything, and say what would run."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table

from rewards.errors import BadInput
from rl.build import Setup, prepare
from rl.config import Config

GB = 1e9
BYTES_PER_PARAMETER = 16
"""fp32 weights, gradients and AdamW's two moments."""


def print_plan(config: Config) -> None:
    """Print the plan. Raises BadInput where something is wrong or can't fit this machine's memory."""
    setup = prepare(config)
    parameters = count_parameters(config.model.path)
    server = {"float32": 4, "bfloat16": 2}[config.model.dtype] * parameters
    needs = {
        "learner: weights, gradients, AdamW (16 bytes a parameter)": BYTES_PER_PARAMETER * parameters,
        f"sampler ({config.sampler}): weights": server,
        "weights on their way to the sampler": server if config.sampler == "vllm" else 0,
        "KV cache": config.server.kv_cache_gb * 2**30 if config.sampler == "vllm" else 0.0,
    }
    Console().print(_table(setup, parameters, needs))
    total, memory = sum(needs.values()), setup.hardware.memory_gb * GB
    if total > memory:
        raise BadInput(
            f"{config.model.path} needs {total / GB:.1f} GB, this machine has {memory / GB:.1f}; use a smaller model"
        )


def count_parameters(path: str) -> int:
    """Parameters of a model directory, from its config alone."""
    import torch
    from transformers import AutoModelForCausalLM

    from rl.model import load_config

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config(path))
    return sum(math.prod(p.shape) for p in model.parameters())


def _table(setup: Setup, parameters: int, needs: dict[str, float]) -> Table:
    config = setup.config
    rollout, train = config.rollout, config.train
    chains = rollout.problems * rollout.group_size
    table = Table("what", "how much", title=f"{config.run_dir}: nothing was started")
    table.add_row("policy", f"{config.model.path}, {parameters:,} parameters, {config.model.dtype}")
    table.add_row("task", f"{setup.task.name}, {setup.task.size('train') or 'endless'} training problems")
    table.add_row("a step", f"{rollout.problems} problems x {rollout.group_size} = {chains} chains")
    table.add_row("tokens a step, at most", f"{chains * rollout.max_tokens:,} sampled")
    table.add_row("context", f"{setup.context} tokens: longest prompt + rollout.max_tokens")
    table.add_row(
        "optimizer steps", f"{train.steps * train.epochs * train.minibatches} at up to {train.learning_rate:g}"
    )
    for name, size in needs.items():
        table.add_row(name, f"{size / GB:.3f} GB")
    table.add_row("memory of this machine", f"{setup.hardware.memory_gb:.1f} GB, {setup.hardware.cores} cores")
    return table
