"""`ponder rewards …`: list, try, check and compare verifiers, no model needed."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rewards.errors import BadInput
from rewards.types import Problem
from rl.cli_data import AsJson, Limit, Workers, track
from rl.exits import CheckFailed

rewards_app = typer.Typer(help="List, try and check rewards.", no_args_is_help=True)

Reward = Annotated[str, typer.Option(help='name, module:function, file.py:function or \'{"use": …, "args": …}\'')]
Memory = Annotated[float, typer.Option("--memory-gb", min=0.01, help="GiB an item may add")]


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
    from rewards.pool import RewardPool

    spec = read_spec(reward)
    tries = [_try(number, line, spec) for number, line in enumerate(sys.stdin.buffer, 1) if line.strip()]
    shown = sys.stderr.isatty() and not sys.stdout.isatty()  # never among the results

    async def run() -> None:
        async with RewardPool(workers, time_limit, memory_gb) as pool:
            await pool.load(spec)
            async for score, seconds in in_order(pool.timed(*one) for one in track(tries, "scoring", shown)):
                row = {"id": score.id, "score": score.value, "correct": score.correct, "status": score.status,
                       "parts": score.parts, "detail": score.detail, "seconds": round(seconds, 6)}  # fmt: skip
                print(json.dumps(row), flush=True)

    asyncio.run(run())


@rewards_app.command("check", epilog="Example: ponder rewards check my_rewards.py:reward --task mine.jsonl")
def rewards_check(
    reward: Annotated[str, typer.Argument(help="as for score")],
    task: Annotated[str | None, typer.Option(help="take problems and their gold answers from this task")] = None,
    count: Annotated[int, typer.Option("-n", min=1, help="problems of the task")] = 5,
    time_limit: Limit = 1.0,
    workers: Workers = 2,
) -> None:
    """Try a reward on gold answers, near misses, empty, huge and hostile responses; exit 1 where one misbehaves."""
    from rich.console import Console
    from rich.table import Table

    from rl.probes import describe, probe_reward

    kinds = asyncio.run(probe_reward(read_spec(reward), task, count, time_limit, workers))
    table = Table("response", "status", "score", "seconds", title=f"reward {reward}")
    table.add_column("verdict", no_wrap=True)
    for probes in kinds:
        table.add_row(*describe(probes))
    Console().print(table)
    bad = [probe for probes in kinds for probe in probes if probe.complaint]
    for probe in bad:
        print(f"{probe.kind}: {probe.complaint}: {probe.score.id} {probe.score.detail}")
    if bad:
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
    from rewards.pool import RewardPool
    from rl.rescore import compare, print_comparison, read_chains, rescore

    spec, chains = read_spec(reward), read_chains(run, steps, limit)

    async def score() -> list[dict[str, Any]]:
        async with RewardPool(workers, time_limit, memory_gb) as pool:
            await pool.load(spec)
            return await rescore(pool, run, spec, track(chains, "scoring"))

    found = {"run": str(run), "reward": spec} | compare(asyncio.run(score()))
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        print_comparison(found, show)


def read_spec(text: str) -> Any:
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
