"""The first lines of a report: what was run, and the figures that matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rl.evaluator import headline
from rl.report.numbers import NONE, TIMES, accuracy, duration, interval, number, points, share, si
from rl.report.record import Cell, Record


@dataclass(frozen=True)
class Tile:
    """One figure with what it is and what it rests on."""

    name: str
    value: str
    detail: str = ""


def tiles(record: Record) -> list[Tile]:
    """The headline figures that the run can already give."""
    found = [*_accuracy(record), *_gain(record.summary), *_tokens_spent(record), *_cost(record), *_agreement(record)]
    return [tile for tile in found if tile.value != NONE]


def sentence(record: Record) -> str:
    """What was run, in a sentence or two."""
    done, config = record.steps, record.config
    if config is None:
        return f"{done} steps."
    tasks = config.task if isinstance(config.task, str) else ", ".join(str(entry.get("task")) for entry in config.task)
    chains = f"{config.rollout.problems} problems {TIMES} {config.rollout.group_size} chains"
    state = f"{done} steps" if record.summary else f"Unfinished: {done} of {config.train.steps} steps"
    sampler = {"vllm": "vLLM"}.get(config.sampler, config.sampler)
    return (
        f"{state} of {config.algorithm.upper()} on {tasks}, {chains} a step, sampled by {sampler}. "
        f"The base is {config.model.path}."
    )


def _accuracy(record: Record) -> list[Tile]:
    named: list[tuple[str, Cell]] = []
    if record.comparison is not None:
        named = list(zip(record.comparison.names, record.comparison.cells[0], strict=True))
    elif record.evaluations:
        label = next(iter(record.evaluations))
        named = [(label, headline(record.evaluations[label]["cells"]))]
    return [
        Tile(
            f"pass@1, {name}",
            accuracy(cell),
            f"{interval(cell)} · {cell['n_problems']} {cell.get('split', '')} problems",
        )
        for name, cell in named
    ]


def _gain(summary: dict[str, Any]) -> list[Tile]:
    if "gain" not in summary:
        return []
    low, high = summary["gain"]["ci95"]
    return [Tile("gain, points", points(summary["gain"]["pass@1"]), f"{points(low)} to {points(high)}, paired")]


def _tokens_spent(record: Record) -> list[Tile]:
    if record.comparison is None:
        return []
    before, after = record.comparison.cells[0]
    value = f"{number(before['tokens_mean'])} → {number(after['tokens_mean'])}"
    return [Tile("tokens a problem", value, f"{share(after.get('truncated'))} cut by the length cap")]


def _cost(record: Record) -> list[Tile]:
    if not record.rows:
        return []
    last = record.rows[-1]
    train, rollout, tokens, seconds = (
        last.get(f"total/{name}") or 0.0 for name in ("flops/train", "flops/rollout", "tokens/generated", "time/step")
    )
    parts = f"{si(train, 'FLOP')} learning, {si(rollout, 'FLOP')} rollout"
    return [
        Tile("compute", si(train + rollout, "FLOP"), parts),
        Tile("time of the steps", duration(seconds), f"{number(seconds / len(record.rows))} s a step"),
        Tile("tokens generated", si(tokens, "").strip(), f"{number(tokens / seconds if seconds else None)} a second"),
    ]


def _agreement(record: Record) -> list[Tile]:
    values = [value for row in record.rows if (value := row.get("mismatch_kl/fresh")) is not None]
    if not values:
        return []
    bound = f"bound {number(record.config.mismatch_bound)}" if record.config else ""
    return [Tile("mismatch KL, worst step", number(max(values)), bound)]
