"""`ponder tasks …`: problems and their gold answers from the command line, no model needed."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from statistics import fmean
from typing import Annotated, TypeVar, cast

import typer

from rewards.types import Split
from rl.exits import CheckFailed

T = TypeVar("T")
SplitName = StrEnum("SplitName", ["train", "val", "test"])

tasks_app = typer.Typer(help="List, sample and check problem sources.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Limit = Annotated[float, typer.Option("--time-limit", min=0.01, help="seconds an item may take")]
Workers = Annotated[int, typer.Option(min=1, help="worker processes")]
TaskName = Annotated[str, typer.Argument(help="NAME, 'NAME?numbers=3' or path.jsonl")]


@tasks_app.command("list", epilog="Example: ponder tasks list --json")
def tasks_list(as_json: AsJson = False) -> None:
    """List the built-in tasks with their parameters."""
    from rewards.tasks import list_tasks

    rows = list_tasks()
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(f"{row['name']}: {row['description']}")
        for name, parameter in row["parameters"].items():
            print(f"    {name}={parameter['default']}  {parameter['help']}")
    print("path.jsonl: problems of your own, one {prompt, answer, …} a line")


@tasks_app.command("sample", epilog="Example: ponder tasks sample 'countdown?numbers=3' -n 5 --split test")
def tasks_sample(
    name: TaskName,
    count: Annotated[int, typer.Option("-n", min=1, help="problems")] = 5,
    split: Annotated[SplitName, typer.Option(help="which split")] = SplitName.train,
    seed: Annotated[int, typer.Option(help="seed of the problems")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show problems as a run with this seed would draw them."""
    from rewards.tasks import load_task

    task, which = load_task(name, seed), cast(Split, split.value)
    size = task.size(which)
    problems = [task.problem(index, which) for index in range(count if size is None else min(count, max(1, size)))]
    if as_json:
        print(json.dumps([asdict(problem) for problem in problems], indent=1))
        return
    for p in problems:
        print(f"{p.id}  (difficulty {p.difficulty:g})\n  prompt: {p.prompt}\n  answer: {p.answer}")


@tasks_app.command("check", epilog="Example: ponder tasks check mine.jsonl -n 200")
def tasks_check(
    name: TaskName,
    count: Annotated[int, typer.Option("-n", min=1, help="problems (of a file: the first ones of each split)")] = 20,
    seed: Annotated[int, typer.Option(help="seed of the problems")] = 0,
    tokenizer: Annotated[Path | None, typer.Option(help="model directory to count tokens with; default: words")] = None,
    time_limit: Limit = 1.0,
    workers: Workers = 2,
    as_json: AsJson = False,
) -> None:
    """Check that every gold answer is scored correct; exit 1 when one is not."""
    from rewards.gold import Gold, first_problems, score_gold
    from rewards.pool import RewardPool
    from rewards.tasks import load_task

    task = load_task(name, seed)
    problems = list(first_problems(task, count))

    async def run() -> list[Gold]:
        async with RewardPool(workers, time_limit) as pool:
            return await score_gold(pool, task, track(problems, "checking"), lambda problem: problem.reward)

    found = asyncio.run(run())
    wrong = [gold for gold in found if not gold.score.correct]
    count, right, seconds = len(found), len(found) - len(wrong), fmean(gold.seconds for gold in found)
    tokens = _mean_tokens([text for p in problems if isinstance(text := p.meta.get("gold"), str)], tokenizer)
    if as_json:
        rows = [{"id": g.problem.id, "status": g.score.status, "detail": g.score.detail} for g in wrong]
        row = {"task": name, "checked": count, "correct": right, "seconds_mean": seconds, "chain_tokens_mean": tokens}
        print(json.dumps(row | {"wrong": rows}, indent=1))
    else:
        lines = [*map(str, wrong), f"{name}: {right} of {count} gold answers are correct ({right / count:.1%})"]
        print(*lines, sep="\n", end=f", {seconds:.4f} s each\n")
        if tokens is not None:
            print(f"{name}: gold chains of {tokens:.0f} {'tokens' if tokenizer else 'words'} on average")
        if dropped := getattr(task, "dropped", 0):
            print(f"{name}: {dropped} rows dropped, since their content is held out in another split")
    if wrong:
        raise CheckFailed(name)


def _mean_tokens(texts: list[str], tokenizer: Path | None) -> float | None:
    if not texts:
        return None
    if tokenizer is None:
        return fmean(len(text.split()) for text in texts)
    from rollout.prompt import load_tokenizer

    return fmean(map(len, load_tokenizer(tokenizer)(texts, add_special_tokens=False).input_ids))


def track(items: Iterable[T], what: str, shown: bool | None = None) -> Iterable[T]:
    """The items behind a bar on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    disable = not (sys.stderr.isatty() if shown is None else shown)
    return track(items, what, console=Console(stderr=True), transient=True, disable=disable)
