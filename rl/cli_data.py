"""`ponder tasks …` and `ponder rewards …`: problems and verifiers from the command line, no model needed."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from rewards.errors import BadInput
from rl.exits import CheckFailed

if TYPE_CHECKING:
    from rewards.tasks import Task
    from rewards.types import Problem, Score, Split

T = TypeVar("T")

tasks_app = typer.Typer(help="List, sample and check problem sources.", no_args_is_help=True)
rewards_app = typer.Typer(help="List, try and check rewards.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Limit = Annotated[float, typer.Option("--time-limit", min=0.01, help="seconds an item may take")]
Workers = Annotated[int, typer.Option(min=1, help="worker processes")]
TaskName = Annotated[str, typer.Argument(help="NAME, 'NAME?numbers=3' or path.jsonl")]


class SplitName(StrEnum):
    """What --split takes."""

    train = "train"
    val = "val"
    test = "test"


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

    task = load_task(name, seed)
    size = task.size(split.value)
    problems = [
        task.problem(index, split.value) for index in range(count if size is None else min(count, max(1, size)))
    ]
    if as_json:
        print(json.dumps([asdict(problem) for problem in problems], indent=1))
        return
    for problem in problems:
        print(
            f"{problem.id}  (difficulty {problem.difficulty:g})\n  prompt: {_text(problem)}\n  answer: {problem.answer}"
        )


@tasks_app.command("check", epilog="Example: ponder tasks check mine.jsonl -n 200")
def tasks_check(
    name: TaskName,
    count: Annotated[int, typer.Option("-n", min=1, help="problems (of a file: the first ones of each split)")] = 20,
    seed: Annotated[int, typer.Option(help="seed of the problems")] = 0,
    time_limit: Limit = 1.0,
    workers: Workers = 2,
) -> None:
    """Check that every gold answer is scored correct; exit 1 when one is not."""
    from rewards.pool import RewardPool
    from rewards.tasks import load_task

    task = load_task(name, seed)
    problems = list(_first(task, count))

    async def run() -> list[tuple[Score, float]]:
        async with RewardPool(workers, time_limit) as pool:
            for spec in task.rewards:
                await pool.load(spec)
            tries = (pool.timed(problem.id, task.gold(problem), problem) for problem in problems)
            return [
                result
                async for result in _in_order(
                    _tracked(tries, "checking", len(problems), sys.stderr.isatty()), 8 * workers
                )
            ]

    results = asyncio.run(run())
    wrong = 0
    for problem, (score, _) in zip(problems, results, strict=True):
        if not score.correct:
            wrong += 1
            print(f"{problem.id}: gold {task.gold(problem)[:80]!r} is {score.status}: {score.detail or 'no reason'}")
    mean = sum(seconds for _, seconds in results) / len(results)
    right = len(results) - wrong
    print(f"{name}: {right} of {len(results)} gold answers are correct ({right / len(results):.1%}), {mean:.4f} s each")
    if hasattr(task, "dropped") and task.dropped:
        print(f"{name}: {task.dropped} rows dropped, since their content is held out in another split")
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
def rewards_score(
    reward: Annotated[str, typer.Option(help='name, module:function, file.py:function or \'{"use": …, "args": …}\'')],
    time_limit: Limit = 1.0,
    memory_gb: Annotated[float, typer.Option("--memory-gb", min=0.01, help="GiB an item may add")] = 1.0,
    workers: Workers = 2,
) -> None:
    """Score responses: JSONL {response, answer, id?, prompt?, …} on stdin, a JSON line for each on stdout, in order."""
    from rewards.pool import RewardPool

    items = [_item(number, line) for number, line in enumerate(sys.stdin.buffer, 1) if line.strip()]
    spec = _spec(reward)

    async def run() -> None:
        async with RewardPool(workers, time_limit, memory_gb) as pool:
            await pool.load(spec)
            tries = (pool.timed("", item.response, item.problem, spec, item.truncated) for item in items)
            shown = sys.stderr.isatty() and not sys.stdout.isatty()  # never among the results
            results = _in_order(_tracked(tries, "scoring", len(items), shown), 8 * workers)
            for item in items:
                score, seconds = await anext(results)
                print(json.dumps(_line(item.id, score, seconds)), flush=True)

    asyncio.run(run())


@rewards_app.command("check", epilog="Example: ponder rewards check my_rewards.py:reward --task mine.jsonl")
def rewards_check(
    reward: Annotated[str, typer.Argument(help="as for score")],
    task: Annotated[str | None, typer.Option(help="take the problem and its gold answer from this task")] = None,
    time_limit: Limit = 1.0,
) -> None:
    """Try a reward on a gold answer and on empty, huge and hostile responses; exit 1 where one misbehaves."""
    from rich.console import Console
    from rich.table import Table

    spec = _spec(reward)
    rows = asyncio.run(_probe(spec, task, time_limit))
    table = Table("response", "status", "score", "seconds", "verdict", title=f"reward {reward}")
    for row in rows:
        table.add_row(row.name, row.score.status, str(row.score.value), f"{row.seconds:.3f}", row.complaint or "good")
    Console().print(table)
    for row in rows:
        if row.score.detail:
            print(f"{row.name}: {row.score.detail}")
    if any(row.complaint for row in rows):
        raise CheckFailed(reward)


@dataclass(frozen=True)
class _Item:
    """One line of `rewards score`."""

    id: Any  # as it came
    response: str
    problem: Problem
    truncated: bool


@dataclass(frozen=True)
class _Probed:
    """One row of `rewards check`."""

    name: str
    score: Score
    seconds: float
    complaint: str


GOLD = "gold answer"
HOSTILE = {
    "empty": "",
    "blanks": " \n\t",
    "unclosed thinking": "<think>" + "Hm. " * 100,
    "a megabyte": "X" * 2**20,
    "10,000 brackets": "\\boxed{" + "(" * 10_000 + ")" * 10_000 + "}",
    "power tower": "\\boxed{9**9**9**9}",
    "factorial tower": "\\boxed{9!!!!}",
    "code": "<answer>__import__('os').system('true')</answer>",
    "NUL bytes": "\0" * 1000,
    "not a number": "\\boxed{nan}",
    "many answers": "\\boxed{1} \\boxed{2} \\boxed{3}",
}


async def _probe(spec: Any, task: str | None, time_limit: float) -> list[_Probed]:
    from rewards.pool import RewardPool

    problem, gold, must_accept = _probe_problem(spec, task)
    rows = []
    async with RewardPool(1, time_limit) as pool:
        await pool.load(spec)
        for name, response in {GOLD: gold, **HOSTILE}.items():
            score, seconds = await pool.timed(name, response, problem, spec)
            rows.append(_Probed(name, score, seconds, _complaint(score, name == GOLD, must_accept)))
    return rows


def _complaint(score: Score, is_gold: bool, must_accept: bool) -> str:
    """What is wrong with a verdict, empty where nothing is."""
    if score.status == "error":
        return "no verdict"
    if not is_gold:
        return "accepts no answer" if score.correct else ""
    if score.status == "rejected":
        return "gold hits a limit"
    return "gold is not correct" if must_accept and not score.correct else ""


def _probe_problem(spec: Any, task: str | None) -> tuple[Problem, str, bool]:
    """A problem to probe with, its gold answer, and whether the reward must accept it."""
    from rewards.tasks import GENERATORS, load_task
    from rewards.types import Problem

    name = task or next((kind.base for kind in GENERATORS.values() if kind.reward == spec), None)
    if name is None:
        return Problem("check", "check", "What is 2 + 2?", "4", "2+2"), "\\boxed{4}", False
    source = load_task(name)
    problem = source.problem(0, "train")
    return problem, source.gold(problem), True


def _spec(text: str) -> Any:
    """A reward as given on the command line: JSON where it begins with a brace."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadInput(f'--reward {text!r} is not JSON ({error}); write \'{{"use": …, "args": {{…}}}}\'') from None


def _item(number: int, line: bytes) -> _Item:
    from rewards.tasks.jsonl import parse_object
    from rewards.types import Problem

    row = parse_object(f"stdin, line {number}", line)
    if not isinstance(row.get("response"), str):
        raise BadInput(f"stdin, line {number}: no text 'response'; each line is {{response, answer, …}}")
    taken = ("response", "id", "prompt", "answer", "truncated")
    problem = Problem(
        id=str(row.get("id", number)),
        task="stdin",
        prompt=row.get("prompt") or "",
        answer=row.get("answer"),
        key=str(number),
        meta={name: value for name, value in row.items() if name not in taken},
    )
    return _Item(row.get("id"), row["response"], problem, bool(row.get("truncated")))


def _line(id: Any, score: Score, seconds: float) -> dict[str, Any]:
    return {
        "id": id,
        "score": score.value,
        "correct": score.correct,
        "status": score.status,
        "parts": score.parts,
        "detail": score.detail,
        "seconds": round(seconds, 6),
    }


def _first(task: Task, count: int) -> Iterator[Problem]:
    """The first problems of every split of a file, or of train where they never end."""
    splits: tuple[Split, ...] = ("train", "val", "test")
    for split in splits:
        size = task.size(split)
        if size is None:
            yield from (task.problem(index, split) for index in range(count))
            return
        yield from (task.problem(index, split) for index in range(min(count, size)))


def _text(problem: Problem) -> str:
    return problem.prompt if isinstance(problem.prompt, str) else json.dumps(problem.prompt)


async def _in_order(coroutines: Iterator[Coroutine[Any, Any, T]], width: int) -> AsyncIterator[T]:
    """Results in the order of the coroutines, of which `width` run at a time."""
    pending: deque[asyncio.Task[T]] = deque()
    try:
        for coroutine in coroutines:
            pending.append(asyncio.create_task(coroutine))
            if len(pending) == width:
                yield await pending.popleft()
        while pending:
            yield await pending.popleft()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


def _tracked(items: Iterator[T], what: str, total: int, shown: bool) -> Iterator[T]:
    """The items, with a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import track

    return iter(track(items, what, total, console=Console(stderr=True), transient=True, disable=not shown))
