"""`ponder eval`: a model or adapter directory, a run or a server's URL -> evaluation cells, printed and written."""

import asyncio
import atexit
import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, get_args

import httpx

from rewards.errors import BadInput, Fault
from rewards.pool import RewardPool
from rewards.tasks import Task, is_task, load_task
from rewards.tasks.base import SPLITS, qualified
from rewards.types import Problem
from rl.build import model_context
from rl.checkpoint import latest_checkpoint
from rl.exits import Stopped, StopSignal
from rl.rundir import RunDir, open_run, result_file, write_json
from rl.views import RunProgress, words
from rollout.client import ServerControl, ServerDown, VllmClient
from rollout.collect import Examiner, Plan, Question, make_questions
from rollout.evaluate import make_cells
from rollout.prompt import Shot, Style, Template
from rollout.server.argv import ServerSpec
from rollout.server.hardware import probe
from rollout.server.middleware import KEY_VARIABLE
from rollout.server.process import ServerProcess, free_port
from rollout.store import EvalStore
from rollout.types import Sampler

EvalRequest = SimpleNamespace  # the options of rl.cli.evaluate with the lists among them parsed, and `plan`


class Target(NamedTuple):
    """What is evaluated: a directory with config and tokenizer, and where its weights are."""

    name: str  # of the cells; a server's URL
    path: str
    think: bool
    sampler: str  # vllm, transformers (the same asked at once gives the same bits), server (has the model already)


def parse_request(tasks: list[str], ks: str, budgets: str, prompts: str, **others: Any) -> EvalRequest:
    """The options of the command line; the lists among them come as text. Raises BadInput, also for a bad mix."""
    numbers = parse_list(ks, "--k", "0*[1-9][0-9]*", "whole numbers, 1 or more")
    caps = parse_list(budgets, "--budget", "[0-9]+|none", "whole numbers, 0 or more, or none")
    request = EvalRequest(
        tasks=parse_tasks(tasks),
        ks=tuple(map(int, numbers)) or (1,),
        budgets=tuple(None if cap == "none" else int(cap) for cap in caps) or (None,),
        prompts=parse_list(prompts, "--prompt", "|".join(get_args(Style)), ", ".join(get_args(Style))) or ("cot",),
        **others,
    )
    samples, given, answer = max(request.ks), request.max_tokens, request.answer
    if request.resume and request.out is None:
        raise BadInput("--resume goes on with the chains beside --out F.json; name it")
    if request.temperature == 0 and samples > 1:
        raise BadInput(f"--temperature 0 gives the same chain {samples} times; use --k 1, or a temperature")
    if "fewshot" in request.prompts and request.split == "all":
        raise BadInput("--prompt fewshot takes its examples from train, which --split all asks; use test or val")
    needed = max((cap + answer for cap in request.budgets if cap is not None), default=0)
    if given is not None and given < needed:
        need = f"the largest --budget and --answer {answer} need {needed} tokens"
        raise BadInput(f"{need}, --max-tokens is {given}; raise it, or leave it out")
    sizes = (given or max(512, needed), answer, request.seed)
    request.plan = Plan(samples, request.temperature, request.budgets, *sizes)
    return request


def parse_list(text: str, option: str, pattern: str, words: str) -> tuple[str, ...]:
    """`1, 4` -> ("1", "4"), each once. Raises BadInput, which asks for `words`, where a part is not of the pattern."""
    parts = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not all(re.fullmatch(pattern, part) for part in parts):
        raise BadInput(f"{option} {text!r} is not a comma-separated list of {words}")
    return parts


def parse_tasks(texts: list[str]) -> tuple[str, ...]:
    """Task strings, one each or several between commas where each part is one. Raises BadInput for one given twice."""
    found: list[str] = []
    for text in texts:
        parts = text.split(",")
        found += parts if all(map(is_task, parts)) and not Path(text).exists() else [text]
    if twice := [name for name in found if found.count(name) > 1]:
        raise BadInput(f"--task {twice[0]} is given twice")
    return tuple(found)


def run_eval(request: EvalRequest) -> None:
    """Evaluate, write and print; everything that can be refused is refused before a server starts."""
    out, plan = request.out, request.plan
    tasks = [load_task(spec, seed=request.seed) for spec in request.tasks]
    target = resolve_target(request.target, request.sampler, request.think, request.tokenizer)
    template = Template.load(target.path, think=target.think)
    for style in request.prompts:
        plan.of(style).check(template)
    questions, task_of = make_exam(request, tasks, template)
    samples = out and out.with_name(out.name.removesuffix(".json") + ".samples.jsonl.zst")
    kept = EvalStore(samples, what_was_asked(request, target, questions) if out else {}, request.resume)
    asyncio.run(_answer(target, template, plan, questions, kept))
    cells = make_cells(
        [kept.groups[q.style, q.problem.id] for q in questions], plan, lambda problem: task_of[problem.id],
        template.response_text, target.name, request.split, request.ks,
    )  # fmt: skip
    result = result_file(cells)
    if out is not None:
        write_json(out, result)
    print(json.dumps(result, indent=1) if request.as_json else words("evaluation", cells).rstrip("\n"))


def make_exam(request: EvalRequest, tasks: list[Task], template: Template) -> tuple[list[Question], dict[str, str]]:
    """All tasks' problems, with their rewards, in all prompt styles; {problem id: its task string}. Raises BadInput."""
    problems, questions, task_of = list[Problem](), list[Question](), dict[str, str]()
    for task in tasks:
        found: list[Problem] = []
        for split in SPLITS if request.split == "all" else [request.split]:
            size, count = task.size(split), request.problems - len(found)
            found += [task.problem(i, split) for i in range(count if size is None else min(size, count))]
        if not found:
            raise BadInput(f"task {task.name} has no {request.split} problems; try --split all, or give rows a split")
        named = [qualified(task, problem) for problem in found]
        problems += [replace(p, reward=request.reward or p.reward or task.reward) for p in named]
        task_of |= {p.id: task.name for p in named}
    shots = {task.name: worked_examples(task, request.shots) for task in tasks if "fewshot" in request.prompts}
    for style in request.prompts:
        shots_of = [lambda problem: shots[task_of[problem.id]]] if style == "fewshot" else []
        questions += make_questions(problems, template, style, *shots_of)
    return questions, task_of


def worked_examples(task: Task, count: int) -> list[Shot]:
    """The first `count` problems of the train split with their gold answers: never a problem that is asked."""
    size = task.size("train")
    if size is not None and size < count:
        raise BadInput(f"task {task.name} has {size} train problems, --shots {count} asks for more; lower it")
    return [(problem.prompt, task.gold(problem)) for problem in (task.problem(i, "train") for i in range(count))]


def what_was_asked(request: EvalRequest, target: Target, questions: list[Question]) -> dict[str, Any]:
    """What the chains of an evaluation depend on, for --resume to compare."""
    rows = [[q.style, q.prompt_ids, asdict(q.problem)] for q in questions]
    weights = target.name  # of a server nothing more can be told
    if target.sampler != "server":
        digest = hashlib.sha256()
        for file in sorted(Path(target.path).iterdir()):
            if file.suffix in (".safetensors", ".bin", ".gguf") or file.name == "config.json":
                with file.open("rb") as opened:
                    digest.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
        weights = digest.hexdigest()[:16]
    return {
        "model": target.name, "weights": weights, "sampler": target.sampler, "tasks": list(request.tasks),
        "split": request.split, "prompts": list(request.prompts),
        "shots": request.shots if "fewshot" in request.prompts else 0, **asdict(request.plan),
        "problems and prompts": hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16],
    }  # fmt: skip


async def _answer(target: Target, template: Template, plan: Plan, questions: list[Question], kept: EvalStore) -> None:
    """Have every question answered that is not kept from before; a signal keeps what is there and stops the server."""
    context = max(len(q.prompt_ids) for q in questions) + plan.max_tokens + len(template.close_ids)
    if context > model_context(target.path):
        raise BadInput(f"prompts and --max-tokens {plan.max_tokens} need {context} tokens of context; lower it")
    left, total = len(kept.unanswered(questions)), plan.samples * len(questions)
    if not left:
        return

    async def work() -> None:
        async with RewardPool() as pool:
            for spec in {repr(q.problem.reward): q.problem.reward for q in questions}.values():
                await pool.load(spec)
            async with open_sampler(target, context, plan.seed) as sampler:
                examiner = Examiner(sampler, template, pool, lambda problem: problem.reward, plan)
                kept.begin()
                with RunProgress(total, total - plan.samples * left) as progress:
                    await kept.answer(examiner, questions, target.sampler == "transformers", progress.chain)

    with StopSignal() as stop:
        try:
            await stop.guard(work())
        except (Stopped, ServerDown) as error:
            done = f" after {len(kept.groups)} of {len(questions)} questions"
            if kept.path and kept.groups:
                done += f", kept in {kept.path}; --resume goes on"
            raise (Stopped(error.signum, done) if isinstance(error, Stopped) else Fault(f"{error}{done}")) from None


def resolve_target(text: str, sampler: str, think: bool, tokenizer: Path | None) -> Target:
    """A URL, a run directory (its newest checkpoint), an adapter's (merged here) or a model's. Raises BadInput."""
    if text.startswith(("http://", "https://")):
        root: Any = tokenizer
        if not (key := os.environ.get(KEY_VARIABLE)):
            raise BadInput(f"a server's URL needs its key in the environment variable {KEY_VARIABLE}")
        try:
            if root is None:
                answer = httpx.get(f"{text}/v1/models", headers={"Authorization": f"Bearer {key}"}, trust_env=False)
                root = answer.raise_for_status().json()["data"][0]["root"]
        except (httpx.HTTPError, KeyError, ValueError) as error:
            raise BadInput(f"{text} does not tell what it serves ({error}); give --tokenizer DIRECTORY") from None
        return Target(text, str(root), think, "server")
    if RunDir(Path(text)).config.is_file():
        run, config = open_run(Path(text))
        found = latest_checkpoint(run.checkpoints, lambda line: print(f"ponder: {line}", file=sys.stderr))
        if found is None:
            raise BadInput(f"{text} is a run without a checkpoint; let it reach train.checkpoint_every steps")
        return Target(f"{text}@{found.step}", str(found.path), config.model.think and think, sampler)
    if (Path(text) / "adapter_config.json").is_file():
        from rl.model import merge_adapter

        scratch = tempfile.mkdtemp(prefix="ponder-merged-")
        atexit.register(shutil.rmtree, scratch, ignore_errors=True)
        merge_adapter(Path(text), Path(scratch, "model"))
        return Target(text, f"{scratch}/model", think, sampler)
    model_context(text)
    return Target(text, text, think, sampler)


@contextlib.asynccontextmanager
async def open_sampler(target: Target, context: int, seed: int) -> AsyncIterator[Sampler]:
    """What samples from the target, with room for `context` tokens; a server that it takes ends with the block."""
    async with contextlib.AsyncExitStack() as stack:
        if target.sampler == "server":
            key = os.environ[KEY_VARIABLE]
            sampler: Any = VllmClient([target.name], key, context=context)
            async with contextlib.aclosing(ServerControl(target.name, key)) as control:
                sampler.model = ["", *await control.adapters()][-1]  # a run's newest, or the model itself
        elif target.sampler == "transformers":
            from rl.model import load_policy
            from rollout.transformers_sampler import TransformersSampler

            model, _ = load_policy(target.path, "float32", seed, attention="sdpa")
            sampler = TransformersSampler(model, context=context, pad_id=0)
        else:
            from rl.model import has_weights, load_policy, save_model

            scratch, path = Path(tempfile.mkdtemp(prefix="ponder-eval-")), target.path  # removed with the server
            if not has_weights(path):
                path = str(scratch / "model")
                save_model(load_policy(target.path, "float32", seed)[0], target.path, path)
            spec = ServerSpec(
                model=path, dtype="float32", max_model_len=context, seed=seed, port=free_port(), sync_dir=None,
                load_format="auto", kv_cache_gb=1.0, gpu_memory_utilization=0.9, eager=True, threads=None,
            )  # fmt: skip
            key, log = secrets.token_urlsafe(24), scratch / "server.log"
            print("ponder: starting vLLM", file=sys.stderr)
            server = await ServerProcess.start(spec, log=log, key=key, hardware=probe(), owned_dirs=(scratch,))
            stack.push_async_callback(server.stop)
            sampler = VllmClient([server.url], key, context=context)
        stack.push_async_callback(sampler.aclose)
        yield sampler
