"""`ponder eval`: a model directory, a run or a server's URL -> evaluation cells, printed and written."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import httpx
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from rewards.errors import BadInput
from rewards.pool import RewardPool
from rewards.tasks import Task, load_task
from rewards.tasks.mixture import qualified
from rewards.types import Problem, Split
from rl.build import model_context
from rl.checkpoint import latest_checkpoint
from rl.provenance import result_file
from rl.rundir import RunDir, open_run, write_json
from rollout.client import VllmClient
from rollout.evaluate import evaluate
from rollout.prompt import Style, Template
from rollout.server.argv import ServerSpec
from rollout.server.hardware import probe
from rollout.server.middleware import KEY_VARIABLE
from rollout.server.process import ServerProcess, free_port
from rollout.types import Sampler

PLAIN_WIDTH = 140
"""Columns of the table in a file or a pipe."""


@dataclass(frozen=True)
class EvalRequest:
    """The command line, parsed."""

    target: str
    tasks: tuple[str, ...]
    problems: int
    split: str  # a Split, or all
    ks: tuple[int, ...]
    budgets: tuple[int | None, ...]
    prompts: tuple[Style, ...]
    temperature: float
    max_tokens: int
    answer: int
    reward: str | None
    sampler: str
    think: bool
    tokenizer: Path | None
    seed: int
    out: Path | None
    as_json: bool


@dataclass(frozen=True)
class Target:
    """What is evaluated: a name for the cells, a directory with config and tokenizer, maybe a server that has it."""

    name: str
    path: str
    url: str | None
    think: bool


def parse_list(text: str, option: str) -> tuple[int, ...]:
    """`1,4` -> (1, 4). Raises BadInput."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise BadInput(f"{option} {text!r} is not a comma-separated list of whole numbers") from None


def parse_prompts(text: str) -> tuple[Style, ...]:
    """`cot,direct` -> ("cot", "direct"). Raises BadInput."""
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in get_args(Style):
            raise BadInput(f"--prompt {name!r} is none of {', '.join(get_args(Style))}")
    return names  # type: ignore[return-value]


def run_eval(request: EvalRequest) -> None:
    """Evaluate and report; everything that can be refused is refused before a server starts."""
    tasks = [load_task(spec, seed=request.seed) for spec in request.tasks]
    chosen = [(qualified(task, problem), task) for task in tasks for problem in _problems(task, request)]
    task_names = {problem.id: task.name for problem, task in chosen}
    spec_of = {problem.id: request.reward or problem.reward or task.reward for problem, task in chosen}
    target = resolve_target(request)
    template = Template.load(target.path, think=target.think)
    cells = asyncio.run(_evaluate(request, target, template, [problem for problem, _ in chosen], spec_of, task_names))
    result = result_file(cells)
    if request.out is not None:
        write_json(request.out, result)
    if request.as_json:
        print(json.dumps(result, indent=1))
    else:
        Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH).print(_table(cells))


def resolve_target(request: EvalRequest) -> Target:
    """A URL, a run directory (its newest checkpoint) or a model directory. Raises BadInput."""
    text = request.target
    if text.startswith(("http://", "https://")):
        path = str(request.tokenizer) if request.tokenizer is not None else _served_model(text)
        return Target(name=text, path=path, url=text, think=request.think)
    if RunDir(Path(text)).config.is_file():
        run, config = open_run(Path(text))
        found = latest_checkpoint(run.checkpoints, lambda line: print(f"ponder: {line}", file=sys.stderr))
        if found is None:
            raise BadInput(f"{text} is a run without a checkpoint; let it reach train.checkpoint_every steps")
        return Target(f"{text}@{found.step}", str(found.path), None, config.model.think and request.think)
    model_context(text)
    return Target(name=text, path=text, url=None, think=request.think)


def _served_model(url: str) -> str:
    """The model directory that a vLLM server names as its root."""
    try:
        answer = httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {_key()}"}, trust_env=False)
        return str(answer.raise_for_status().json()["data"][0]["root"])
    except (httpx.HTTPError, KeyError, ValueError) as error:
        raise BadInput(f"{url} does not tell which model it serves ({error}); give --tokenizer DIRECTORY") from None


def _key() -> str:
    key = os.environ.get(KEY_VARIABLE, "")
    if not key:
        raise BadInput(f"a server's URL needs its key in the environment variable {KEY_VARIABLE}")
    return key


def _problems(task: Task, request: EvalRequest) -> list[Problem]:
    splits = [split for split in get_args(Split) if request.split in (split, "all")]
    found: list[Problem] = []
    for split in splits:
        size = task.size(split)
        count = request.problems - len(found)
        found += [task.problem(i, split) for i in range(count if size is None else min(size, count))]
    if not found:
        raise BadInput(f"task {task.name} has no {request.split} problems; try --split all, or give rows a split")
    return found


async def _evaluate(
    request: EvalRequest,
    target: Target,
    template: Template,
    problems: list[Problem],
    spec_of: dict[str, Any],
    task_names: dict[str, str],
) -> list[dict[str, Any]]:
    longest = max(len(template.encode(problem.prompt)) for problem in problems)
    context = longest + request.max_tokens + len(template.close_ids)
    if context > model_context(target.path):
        raise BadInput(f"prompts and --max-tokens {request.max_tokens} need {context} tokens of context; lower it")
    cells: list[dict[str, Any]] = []
    async with RewardPool() as pool, _open_sampler(request, target, context) as sampler:
        for spec in {repr(spec): spec for spec in spec_of.values()}.values():
            await pool.load(spec)
        for style in request.prompts:
            with _progress(style) as on_progress:
                found, _ = await evaluate(
                    problems,
                    sampler=sampler,
                    template=template,
                    pool=pool,
                    spec_of=lambda problem: spec_of[problem.id],
                    task_of=lambda problem: task_names[problem.id],
                    model=target.name,
                    split=request.split,
                    samples=max(request.ks),
                    ks=request.ks,
                    temperature=request.temperature,
                    budgets=request.budgets,
                    style=style,
                    max_tokens=request.max_tokens,
                    answer=request.answer,
                    seed=request.seed,
                    on_progress=on_progress,
                )
            cells += found
    return cells


@contextlib.asynccontextmanager
async def _open_sampler(request: EvalRequest, target: Target, context: int) -> AsyncIterator[Sampler]:
    if target.url is not None:
        sampler: Sampler = VllmClient([target.url], _key(), context=context)
        server = None
    elif request.sampler == "transformers":
        from rl.model import load_policy
        from rollout.transformers_sampler import TransformersSampler

        model, _ = load_policy(target.path, "float32", request.seed, attention="sdpa")
        sampler, server = TransformersSampler(model, context=context, pad_id=0), None
    else:
        server, sampler = await _start_server(request, target, context)
    try:
        yield sampler
    finally:
        await sampler.aclose()
        if server is not None:
            await server.stop()


async def _start_server(request: EvalRequest, target: Target, context: int) -> tuple[ServerProcess, VllmClient]:
    from rl.model import has_weights, materialise

    scratch = Path(tempfile.mkdtemp(prefix="ponder-eval-"))  # removed with the server
    path = (
        target.path
        if has_weights(target.path)
        else str(materialise(target.path, request.seed, "float32", scratch / "model"))
    )
    spec = ServerSpec(
        model=path, dtype="float32", max_model_len=context, seed=request.seed, port=free_port(), sync_dir=None,
        load_format="auto", kv_cache_gb=1.0, gpu_memory_utilization=0.9, eager=True, threads=None,
    )  # fmt: skip
    key = secrets.token_urlsafe(24)
    print("ponder: starting vLLM", file=sys.stderr)
    server = await ServerProcess.start(
        spec, log=scratch / "server.log", key=key, hardware=probe(), owned_dirs=(scratch,)
    )
    return server, VllmClient([server.url], key, context=context)


@contextlib.contextmanager
def _progress(style: str) -> Iterator[Any]:
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"chains ({style})", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _table(cells: list[dict[str, Any]]) -> Table:
    table = Table("task", "prompt", "budget", "pass@1", "95 % interval", "pass@k", "tokens", "truncated", "unparsed")
    for cell in cells:
        low, high = cell["ci95"]
        table.add_row(
            cell["task"],
            cell["prompt"],
            "no cap" if cell["budget"] is None else str(cell["budget"]),
            f"{cell['pass@1']:.3f}",
            f"{low:.3f} to {high:.3f}",
            "  ".join(f"{k}: {value:.3f}" for k, value in cell["pass@k"].items()),
            f"{cell['tokens_mean']:.0f}",
            f"{cell['truncated']:.0%}",
            f"{cell['unparsed']:.0%}",
        )
    return table
