"""`ponder tasks …` and `ponder rewards …`: problems and verifiers from the command line, no model needed."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from rewards.errors import BadInput
from rewards.types import Problem, Score, Split
from rl.exits import CheckFailed

if TYPE_CHECKING:
    from rewards.tasks import Task

SplitName = StrEnum("SplitName", ["train", "val", "test"])

tasks_app = typer.Typer(help="List, sample and check problem sources.", no_args_is_help=True)
rewards_app = typer.Typer(help="List, try and check rewards.", no_args_is_help=True)

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
    time_limit: Limit = 1.0,
    workers: Workers = 2,
) -> None:
    """Check that every gold answer is scored correct; exit 1 when one is not."""
    from rewards.tasks import load_task

    task = load_task(name, seed)
    problems = _first(task, count)

    async def run() -> list[tuple[Score, float]]:
        tries = [(problem.id, task.gold(problem), problem) for problem in problems]
        return [scored async for scored in _judge(tries, task.rewards, sys.stderr.isatty(), time_limit, workers)]

    results = asyncio.run(run())
    for problem, (score, _) in zip(problems, results, strict=True):
        if not score.correct:
            print(f"{problem.id}: gold {task.gold(problem)[:80]!r} is {score.status}: {score.detail or 'no reason'}")
    count, right = len(results), sum(score.correct for score, _ in results)
    mean = sum(seconds for _, seconds in results) / count
    print(f"{name}: {right} of {count} gold answers are correct ({right / count:.1%}), {mean:.4f} s each")
    if dropped := getattr(task, "dropped", 0):
        print(f"{name}: {dropped} rows dropped, since their content is held out in another split")
    if right < count:
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
    spec = _spec(reward)
    tries = [_try(number, line, spec) for number, line in enumerate(sys.stdin.buffer, 1) if line.strip()]
    shown = sys.stderr.isatty() and not sys.stdout.isatty()  # never among the results

    async def run() -> None:
        async for score, seconds in _judge(tries, [spec], shown, time_limit, workers, memory_gb):
            row = {"id": score.id, "score": score.value, "correct": score.correct, "status": score.status,
                   "parts": score.parts, "detail": score.detail, "seconds": round(seconds, 6)}  # fmt: skip
            print(json.dumps(row), flush=True)

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
    problem, gold, must_accept = _probe_problem(spec, task)

    async def run() -> list[tuple[Score, float]]:
        tries = [(name, response, problem, spec) for name, response in {GOLD: gold, **HOSTILE}.items()]
        return [scored async for scored in _judge(tries, [spec], False, time_limit)]

    results = asyncio.run(run())
    complaints = [_complaint(score, must_accept) for score, _ in results]
    table = Table("response", "status", "score", "seconds", "verdict", title=f"reward {reward}")
    for (score, seconds), complaint in zip(results, complaints, strict=True):
        table.add_row(score.id, score.status, str(score.value), f"{seconds:.3f}", complaint or "good")
    Console().print(table)
    for score, _ in results:
        if score.detail:
            print(f"{score.id}: {score.detail}")
    if any(complaints):
        raise CheckFailed(reward)


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


def _complaint(score: Score, must_accept: bool) -> str:
    """What is wrong with the verdict on the response `score.id`, empty where nothing is."""
    if score.status == "error":
        return "no verdict"
    if score.id != GOLD:
        return "accepts no answer" if score.correct else ""
    if score.status == "rejected":
        return "gold hits a limit"
    return "gold is not correct" if must_accept and not score.correct else ""


def _probe_problem(spec: Any, task: str | None) -> tuple[Problem, str, bool]:
    """A problem to probe with, its gold answer, and whether the reward must accept it."""
    from rewards.tasks import GENERATORS, load_task

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


def _first(task: Task, count: int) -> list[Problem]:
    """The first problems of every split of a file, or of train where they never end."""
    if task.size("train") is None:
        return [task.problem(index, "train") for index in range(count)]
    return [task.problem(i, split) for split in get_args(Split) for i in range(min(count, task.size(split) or 0))]


async def _judge(
    tries: Sequence[Any], specs: Sequence[Any], shown: bool, time_limit: float, workers: int = 1, memory_gb: float = 1.0
) -> AsyncIterator[tuple[Score, float]]:
    """Verdicts with seconds, in the order of the tries (arguments of pool.timed), behind a bar on stderr if `shown`."""
    from rich.console import Console
    from rich.progress import track

    from rewards.pool import RewardPool

    bar = track(tries, "scoring", console=Console(stderr=True), transient=True, disable=not shown)
    pending: deque[asyncio.Task[tuple[Score, float]]] = deque()
    async with RewardPool(workers, time_limit, memory_gb) as pool:
        try:
            for spec in specs:
                await pool.load(spec)
            for arguments in bar:
                pending.append(asyncio.create_task(pool.timed(*arguments)))
                if len(pending) == 8 * workers:
                    yield await pending.popleft()
            while pending:
                yield await pending.popleft()
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
