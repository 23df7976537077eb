"""`ponder tasks …` and `ponder rewards …`: problems and verifiers from the command line, no model needed."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

from rewards.errors import BadInput
from rewards.types import Problem, Split
from rl.exits import CheckFailed

if TYPE_CHECKING:
    from rewards.pool import RewardPool

T = TypeVar("T")
SplitName = StrEnum("SplitName", ["train", "val", "test"])

tasks_app = typer.Typer(help="List, sample and check problem sources.", no_args_is_help=True)
rewards_app = typer.Typer(help="List, try, check and compare rewards.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Limit = Annotated[float, typer.Option("--time-limit", min=0.01, help="seconds an item may take")]
Workers = Annotated[int, typer.Option(min=1, help="worker processes")]
Reward = Annotated[str, typer.Option(help='name, module:function, file.py:function or \'{"use": …, "args": …}\'')]
Memory = Annotated[float, typer.Option("--memory-gb", min=0.01, help="GiB an item may add")]
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
    from rewards.gold import first_problems, score_gold
    from rewards.tasks import load_task
    from rollout.prompt import load_tokenizer

    task = load_task(name, seed)
    problems = list(first_problems(task, count))
    shown = _track(problems, "checking")
    found = _in_pool(lambda pool: score_gold(pool, task, shown, lambda p: p.reward), workers, time_limit)
    wrong = [gold for gold in found if not gold.score.correct]
    count, right, seconds = len(found), len(found) - len(wrong), fmean(gold.seconds for gold in found)
    chains = [text for p in problems if isinstance(text := p.meta.get("gold"), str)]
    split = load_tokenizer(tokenizer).tokenize if tokenizer else str.split
    tokens = fmean(len(split(text)) for text in chains) if chains else None
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


@rewards_app.command("list", epilog="Example: ponder rewards list")
def rewards_list(as_json: AsJson = False) -> None:
    """List rewards that have a name, with the source of each."""
    from rewards.registry import list_rewards

    rows = list_rewards()
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(f"{row['name']}: {row['source']}")
    print("and your own: module:function, path/file.py:function")


@rewards_app.command("score", epilog="Example: ponder rewards score --reward my_rewards.py:reward < responses.jsonl")
def rewards_score(reward: Reward, time_limit: Limit = 1.0, memory_gb: Memory = 1.0, workers: Workers = 2) -> None:
    """Score responses: JSONL {response, answer, id?, prompt?, …} on stdin, a JSON line for each on stdout, in order."""
    from rewards.gold import in_order

    spec = _read_spec(reward)
    tries = [_try(number, line, spec) for number, line in enumerate(sys.stdin.buffer, 1) if line.strip()]
    shown = sys.stderr.isatty() and not sys.stdout.isatty()  # never among the results

    async def run(pool: RewardPool) -> None:
        await pool.load(spec)
        async for score, seconds in in_order(pool.timed(*one) for one in _track(tries, "scoring", shown)):
            row = {"id": score.id, "score": score.value, "correct": score.correct, "status": score.status,
                   "parts": score.parts, "detail": score.detail, "seconds": round(seconds, 6)}  # fmt: skip
            print(json.dumps(row), flush=True)

    _in_pool(run, workers, time_limit, memory_gb)


@rewards_app.command("check", epilog="Example: ponder rewards check my_rewards.py:reward --task mine.jsonl")
def rewards_check(
    reward: Annotated[str, typer.Argument(help="as for score")],
    task: Annotated[str | None, typer.Option(help="take problems and their gold answers from this task")] = None,
    count: Annotated[int, typer.Option("-n", min=1, help="problems of the task")] = 5,
    time_limit: Limit = 1.0,
    workers: Workers = 2,
) -> None:
    """Try a reward on gold answers, near misses, empty, huge and hostile responses; exit 1 where one misbehaves."""
    from rl.tryout import probe_reward

    spec = _read_spec(reward)
    table, wrong = _in_pool(lambda pool: probe_reward(pool, spec, task, count), workers, time_limit)
    print(*table, *wrong, sep="\n")
    if wrong:
        raise CheckFailed(reward)


@rewards_app.command("rescore", epilog="Example: ponder rewards rescore runs/first --reward math --steps 5-10")
def rewards_rescore(
    run: Annotated[Path, typer.Argument(help="run directory; it is only read")],
    reward: Reward,
    steps: Annotated[str, typer.Option(help="`7` or `5-10`; default: all")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="chains at most")] = None,
    show: Annotated[int, typer.Option("-n", min=0, help="changed chains that are shown")] = 10,
    time_limit: Limit = 1.0,
    memory_gb: Memory = 1.0,
    workers: Workers = 2,
    as_json: AsJson = False,
) -> None:
    """Score a run's stored chains with another reward, and show old and new verdicts side by side."""
    from rl.tryout import describe, rescore, stored_chains

    spec, chains = _read_spec(reward), _track(stored_chains(run, steps, limit), "scoring")
    found = _in_pool(lambda pool: rescore(pool, run, spec, chains), workers, time_limit, memory_gb)
    print(json.dumps(found, indent=1) if as_json else "\n".join(describe(found, show)))


def _read_spec(text: str) -> Any:
    """A reward as given on the command line: JSON where it begins with a brace. Raises BadInput."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadInput(f'--reward {text!r} is not JSON ({error}); write \'{{"use": …, "args": {{…}}}}\'') from None


def _try(number: int, line: bytes, spec: Any) -> tuple[Any, ...]:
    """One line of `rewards score` as the arguments of pool.timed; the id comes back as it came."""
    from rewards.tasks.jsonl import parse_object

    row = parse_object(f"stdin, line {number}", line)
    id, response, truncated = row.pop("id", None), row.pop("response", None), bool(row.pop("truncated", False))
    if not isinstance(response, str):
        raise BadInput(f"stdin, line {number}: no text 'response'; each line is {{response, answer, …}}")
    prompt, answer = row.pop("prompt", None) or "", row.pop("answer", None)
    problem = Problem(str(number if id is None else id), "stdin", prompt, answer, key=str(number), meta=row)
    return id, response, problem, spec, truncated


def _in_pool(work: Callable[[RewardPool], Coroutine[Any, Any, T]], *limits: Any) -> T:
    """Do what needs a pool of rewards."""
    from rewards.pool import RewardPool

    async def run() -> T:
        async with RewardPool(*limits) as pool:
            return await work(pool)

    return asyncio.run(run())


def _track(items: Iterable[T], what: str, shown: bool | None = None) -> Iterable[T]:
    """The items behind a bar on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    disable = not (sys.stderr.isatty() if shown is None else shown)
    return track(items, what, console=Console(stderr=True), transient=True, disable=disable)
