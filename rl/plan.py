"""`--dry-run`: check everything that can be checked without starting anything, and say what would run, and where."""

import math
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Column, Table

from rewards.types import Prompt
from rl.build import Setup, examine
from rl.config import Config
from rl.memory import GB, Placement, Shapes, place
from rollout.prompt import Template
from rollout.server.hardware import probe, stated_hardware


def print_plan(config: Config) -> None:
    """Print the plan for this machine, or for the one that `hardware` states.
    Raises BadInput where something is wrong or doesn't fit. A hub's name in `model.path` is enough: see shapes_path."""
    hardware = stated_hardware(probe(), config.hardware.gpus, config.hardware.gpu_memory_gb)
    model, template = config.model, cast(Template, ByteCount(config.model.system_prompt or ""))
    local = Path(model.path).is_dir()
    if local:
        template = Template.load(model.path, think=model.think, system_prompt=model.system_prompt)
    setup = examine(config, hardware, template)
    placement = place(config, hardware, setup.context)
    title = f"{config.run_dir}: nothing was started; all sizes are estimates"
    table = Table(*(Column(name, overflow="fold") for name in ("where", "what", "how much")), title=title)
    rollout, train, lora, shapes = config.rollout, config.train, model.lora, Shapes.of(config)
    chains, size = rollout.problems * rollout.group_size, setup.task.size("train")
    trained = f"LoRA of rank {lora.rank}, {shapes.adapters:,} trained" if lora else "all trained"
    work = {
        "policy": f"{model.path}, {shapes.parameters:,} parameters, {trained}, {model.dtype}",
        "task": f"{setup.task.name}, {f'{size:,}' if size else 'endless'} training problems",
        "a step": f"{rollout.problems} problems x {rollout.group_size} = {chains} chains",
        "tokens a step, at most": f"{chains * rollout.max_tokens:,} sampled",
        "context": f"{setup.context} tokens: longest prompt{'' if local else ' in bytes'} + rollout.max_tokens",
        "push": f"sync.backend={config.sync.backend}",
        "optimizer steps": f"{train.steps * train.epochs * train.minibatches} at up to {train.learning_rate:g}",
    }
    for row in (*(("", what, text) for what, text in work.items()), *_memory(setup, placement)):
        table.add_row(*row)
    Console().print(table)
    placement.check()


class ByteCount:
    """In place of a tokenizer that is not here: a token for each byte, more than any byte-level tokenizer makes."""

    close_ids = ()  # counted in `encode`

    def __init__(self, system_prompt: str) -> None:
        self.system_prompt = system_prompt

    def encode(self, prompt: Prompt, *how: Any) -> list[int]:
        """As many ids as the prompt may have at most, and 64 for a chat template and a forced close."""
        text = prompt if isinstance(prompt, str) else "".join(message["content"] for message in prompt)
        return [0] * (len((self.system_prompt + text).encode()) + 64)


def _memory(setup: Setup, placement: Placement) -> list[tuple[str, str, str]]:
    """What would lie where; items of no size are left out."""
    rows = []
    for each in placement.places:
        items = {name: size for name, size in each.items.items() if size} or {"idle": 0.0}
        rows += [(each.name if i == 0 else "", name, _gb(size)) for i, (name, size) in enumerate(items.items())]
        room = "" if math.isinf(each.capacity) else f" of {_gb(each.capacity)}"
        rows.append(("", "together", _gb(each.needed) + room))
    if placement.kv_tokens:
        chains = placement.kv_tokens / setup.context
        rows.append(("", "KV cache", f"{placement.kv_tokens:,} tokens: {chains:,.0f} chains of full length at once"))
    if placement.server_share is not None:
        rows.append(("", "--gpu-memory-utilization", f"{placement.server_share:g}"))
    return rows


def _gb(size: float) -> str:
    return f"{size / GB:.3f} GB"
