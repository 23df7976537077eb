"""A run's stored chains under another reward: old and new verdicts side by side. The run is only read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from rewards.answer import final_answer
from rewards.errors import BadInput
from rewards.gold import in_order
from rewards.pool import RewardPool
from rewards.types import Problem
from rl.rundir import open_run
from rollout.collect import score_chain
from rollout.evaluate import wilson
from rollout.prompt import Template
from rollout.store import read
from rollout.types import Chain

Stored = tuple[int, Problem, Chain]  # with its step
SIDES = ("old", "new")


def read_chains(path: Path, steps: str = "", limit: int | None = None) -> list[Stored]:
    """The judged chains of a run, of these steps (`7`, `5-10`) alone. Raises BadInput where there are none."""
    run, _ = open_run(path)
    first, dash, last = steps.partition("-")
    if steps and not (first.isdecimal() and (last.isdecimal() or not dash)):
        raise BadInput(f"--steps {steps!r} is neither a step nor a range; write 7 or 5-10")
    frames = read(run.samples) if run.samples.is_file() else []
    wanted = (frame for frame in frames if not steps or int(first) <= frame[0] <= int(last or first))
    found = ((step, g.problem, c) for step, groups in wanted for g in groups for c in g.chains if c.score is not None)
    chains = list(islice(found, limit))
    if not chains:
        raise BadInput(f"{path} holds no chains{f' of steps {steps}' if steps else ''}; see its {run.samples.name}")
    return chains


async def rescore(pool: RewardPool, path: Path, spec: Any, chains: Iterable[Stored]) -> list[dict[str, Any]]:
    """Judge every chain as the run did, with another reward: {id, reference, answer, old: score, new: score}."""
    _, config = open_run(path)
    template = Template.load(config.model.path, think=config.model.think, system_prompt=config.model.system_prompt)

    async def one(step: int, problem: Problem, chain: Chain) -> dict[str, Any]:
        again = await score_chain(chain, problem, template=template, pool=pool, spec=spec, step=step)
        scores = {side: asdict(c.score) for side, c in zip(SIDES, (chain, again), strict=True) if c.score is not None}
        answer = final_answer(template.response_text(chain))
        return {"id": chain.id, "reference": problem.answer, "answer": answer} | scores

    return [row async for row in in_order(one(*stored) for stored in chains)]


def compare(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of both sides, {"old -> new": chains}, the share that is as correct as before, and the other rows."""
    changed = [row for row in rows if row["old"]["correct"] != row["new"]["correct"]]
    same = 1 - len(changed) / len(rows)
    moves = Counter(" -> ".join(row[side]["status"] for side in SIDES) for row in rows)
    figures: dict[str, Any] = {"chains": len(rows), "agreement": {"share": same, "ci95": wilson(same, len(rows))}}
    for side in SIDES:
        values = [row[side]["value"] for row in rows if row[side]["value"] is not None]
        correct = fmean(row[side]["correct"] for row in rows)
        figures[side] = {"mean": fmean(values) if values else None, "pass@1": correct}
    return figures | {"moves": dict(moves.most_common()), "changed": changed}


def print_comparison(found: dict[str, Any], show: int) -> None:
    """What `compare` found as a table, with the first `show` chains that changed."""
    from rich.console import Console
    from rich.table import Table

    print(f"{found['run']}: {found['chains']} chains under {found['reward']}")
    table = Table("old -> new", "chains")
    for move, count in found["moves"].items():
        table.add_row(move, str(count))
    Console().print(table)
    for side in SIDES:
        mean, correct = found[side]["mean"], found[side]["pass@1"]
        print(f"{side}: mean {'none' if mean is None else f'{mean:.4f}'}, pass@1 {correct:.4f}")
    share, (low, high) = found["agreement"]["share"], found["agreement"]["ci95"]
    print(f"as correct as before: {share:.4f} [{low:.4f}, {high:.4f}]; {len(found['changed'])} chains changed")
    for row in found["changed"][:show]:
        moved = " -> ".join(f"{row[side]['status']} {row[side]['value']}" for side in SIDES)
        print(f"{row['id']}: {moved}  answer {row['answer']!r}, reference {row['reference']!r}  {row['new']['detail']}")
