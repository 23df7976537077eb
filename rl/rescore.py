"""A run's stored chains under another reward: old and new verdicts side by side. The run is only read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from rewards.answer import final_answer
from rewards.errors import BadInput
from rewards.gold import in_order
from rewards.pool import RewardPool
from rewards.types import Problem, Score
from rl.rundir import open_run
from rollout.collect import score_chain
from rollout.evaluate import wilson
from rollout.prompt import Template
from rollout.store import read
from rollout.types import Chain

Stored = tuple[int, Problem, Chain]  # with its step


class Pair(NamedTuple):
    """Two verdicts on one chain."""

    problem: Problem
    answer: str | None
    old: Score
    new: Score


def read_chains(path: Path, steps: str = "", limit: int | None = None) -> list[Stored]:
    """The judged chains of a run, of these steps (`7`, `5-10`) alone. Raises BadInput where there are none."""
    run, _ = open_run(path)
    first, dash, last = steps.partition("-")
    if steps and not (first.isdecimal() and (last.isdecimal() or not dash)):
        raise BadInput(f"--steps {steps!r} is neither a step nor a range; write 7 or 5-10")
    wanted = range(int(first), int(last or first) + 1) if steps else None
    frames = read(run.samples) if run.samples.is_file() else []
    found = (
        (step, group.problem, chain)
        for step, groups in frames
        if wanted is None or step in wanted
        for group in groups
        for chain in group.chains
        if chain.score is not None
    )
    chains = list(islice(found, limit))
    if not chains:
        raise BadInput(f"{path} holds no chains{f' of steps {steps}' if steps else ''}; see its {run.samples.name}")
    return chains


async def rescore(pool: RewardPool, path: Path, spec: Any, chains: Iterable[Stored]) -> list[Pair]:
    """Judge every chain as the run did, with another reward."""
    _, config = open_run(path)
    template = Template.load(config.model.path, think=config.model.think, system_prompt=config.model.system_prompt)

    async def one(step: int, problem: Problem, chain: Chain) -> Pair:
        again = await score_chain(chain, problem, template=template, pool=pool, spec=spec, step=step)
        assert chain.score is not None
        assert again.score is not None
        return Pair(problem, final_answer(template.response_text(chain)), chain.score, again.score)

    return [pair async for pair in in_order(one(*stored) for stored in chains)]


def compare(pairs: list[Pair]) -> dict[str, Any]:
    """Figures of both sides, {"old -> new": chains}, the share that stays as correct as it was, and what changed."""
    n = len(pairs)
    same = fmean(pair.old.correct == pair.new.correct for pair in pairs)
    moves = Counter(f"{pair.old.status} -> {pair.new.status}" for pair in pairs)
    changed = [
        {"id": p.old.id, "answer": p.answer, "reference": p.problem.answer}
        | {f"{side}_{name}": getattr(s, name) for side, s in zip(("old", "new"), p[2:], strict=True)
           for name in ("status", "value", "detail")}
        for p in pairs if p.old.correct != p.new.correct
    ]  # fmt: skip
    sides = {"old": _figures([p.old for p in pairs]), "new": _figures([p.new for p in pairs])}
    agreement = {"share": same, "ci95": wilson(same, n)}
    return {"chains": n, **sides, "agreement": agreement, "moves": dict(moves.most_common()), "changed": changed}


def _figures(scores: list[Score]) -> dict[str, Any]:
    values = [score.value for score in scores if score.value is not None]
    return {
        "mean": fmean(values) if values else None,
        "pass@1": fmean(score.correct for score in scores),
        "statuses": dict(Counter(score.status for score in scores).most_common()),
    }


def print_comparison(found: dict[str, Any], show: int) -> None:
    """What `compare` found as tables, with the first `show` chains that changed."""
    from rich.console import Console
    from rich.table import Table

    console, (low, high) = Console(), found["agreement"]["ci95"]
    table = Table("verdicts", "mean", "pass@1", "statuses", title=f"{found['run']}: {found['chains']} chains")
    for side in ("old", "new"):
        figures = found[side]
        mean = "-" if figures["mean"] is None else f"{figures['mean']:.4f}"
        table.add_row(
            side, mean, f"{figures['pass@1']:.4f}", ", ".join(f"{n} {s}" for s, n in figures["statuses"].items())
        )
    moves = Table("old -> new", "chains")
    for move, n in found["moves"].items():
        moves.add_row(move, str(n))
    console.print(table, moves)
    print(
        f"same correctness: {found['agreement']['share']:.4f} [{low:.4f}, {high:.4f}], {len(found['changed'])} changed"
    )
    for row in found["changed"][:show]:
        print(f"{row['id']}: {row['old_status']} {row['old_value']} -> {row['new_status']} {row['new_value']}  "
              f"answer {row['answer']!r}, reference {row['reference']!r}  {row['new_detail']}")  # fmt: skip
