"""`ponder eval`: a model directory, a run or a server's URL -> evaluation cells, printed and written."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Column, Table

from rewards.errors import BadInput, Fault
from rewards.pool import RewardPool
from rewards.tasks import Task, is_task, load_task
from rewards.tasks.mixture import qualified
from rewards.types import Problem, Split
from rl.build import model_context
from rl.evaltarget import Target, open_sampler, resolve_target
from rl.exits import Stopped, StopSignal
from rl.progress import RunProgress
from rl.provenance import result_file
from rl.rundir import write_json
from rollout.client import ServerDown
from rollout.collect import Examiner, Plan, Question, make_questions
from rollout.evalstore import EvalStore, answer_all
from rollout.evaluate import make_cells
from rollout.prompt import Shot, Style, Template

PLAIN_WIDTH = 140  # columns of the table in a file or a pipe
MAX_TOKENS = 512  # tokens of a chain where neither --max-tokens nor a budget asks for more


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
    shots: int
    temperature: float
    max_tokens: int | None
    answer: int
    reward: str | None
    sampler: str
    think: bool
    tokenizer: Path | None
    seed: int
    out: Path | None
    resume: bool
    as_json: bool

    def plan(self) -> Plan:
        """How each problem is asked. Raises BadInput for what does not fit together."""
        if self.temperature == 0 and max(self.ks) > 1:
            raise BadInput(f"--temperature 0 gives the same chain {max(self.ks)} times; use --k 1, or a temperature")
        if "fewshot" in self.prompts and self.split == "all":
            raise BadInput("--prompt fewshot takes its examples from train, which --split all asks; use test or val")
        needed = max((b + self.answer for b in self.budgets if b is not None), default=0)
        if self.max_tokens is not None and self.max_tokens < needed:
            raise BadInput(
                f"the largest --budget and --answer {self.answer} need {needed} tokens, --max-tokens is "
                f"{self.max_tokens}; raise it, or leave it out"
            )
        max_tokens = self.max_tokens or max(MAX_TOKENS, needed)
        return Plan(max(self.ks), self.temperature, self.budgets, max_tokens, self.answer, self.seed)


def parse_request(tasks: list[str], ks: str, budgets: str, prompts: str, **others: Any) -> EvalRequest:
    """The options of the command line; the lists among them come as text. Raises BadInput."""
    numbers = parse_list(ks, "--k", "0*[1-9][0-9]*", "whole numbers, 1 or more")
    caps = parse_list(budgets, "--budget", "[0-9]+|none", "whole numbers, 0 or more, or none")
    styles: Any = parse_list(prompts, "--prompt", "|".join(get_args(Style)), ", ".join(get_args(Style)))
    return EvalRequest(
        tasks=parse_tasks(tasks),
        ks=tuple(map(int, numbers)) or (1,),
        budgets=tuple(None if cap == "none" else int(cap) for cap in caps) or (None,),
        prompts=styles or ("cot",),
        **others,
    )


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
    for name in found:
        if found.count(name) > 1:
            raise BadInput(f"--task {name} is given twice")
    return tuple(found)


def run_eval(request: EvalRequest) -> None:
    """Evaluate, write and print; everything that can be refused is refused before a server starts."""
    out = request.out
    if request.resume and out is None:
        raise BadInput("--resume goes on with the chains beside --out F.json; name it")
    plan = request.plan()
    tasks = [load_task(spec, seed=request.seed) for spec in request.tasks]
    target = resolve_target(request.target, request.sampler, request.think, request.tokenizer)
    template = Template.load(target.path, think=target.think)
    for style in request.prompts:
        plan.of(style).check(template)
    questions, task_of = make_exam(request, tasks, template)
    asked = {} if out is None else what_was_asked(request, target, plan, questions)
    samples = None if out is None else out.with_name(out.name.removesuffix(".json") + ".samples.jsonl.zst")
    kept = EvalStore(samples, asked, request.resume)
    asyncio.run(_answer(target, template, plan, questions, kept))
    cells = make_cells(
        [kept.groups[q.style, q.problem.id] for q in questions], plan, lambda problem: task_of[problem.id],
        text_of=template.response_text, ks=request.ks, model=target.name, split=request.split,
    )  # fmt: skip
    result = result_file(cells)
    if out is not None:
        write_json(out, result)
    if request.as_json:
        print(json.dumps(result, indent=1))
    else:
        Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH).print(_table(cells))


def make_exam(request: EvalRequest, tasks: list[Task], template: Template) -> tuple[list[Question], dict[str, str]]:
    """All tasks' problems, with their rewards, in all prompt styles; {problem id: its task string}. Raises BadInput."""
    chosen = [(qualified(task, problem), task) for task in tasks for problem in _problems(task, request)]
    problems = [replace(p, reward=request.reward or p.reward or task.reward) for p, task in chosen]
    task_of = {problem.id: task.name for problem, task in chosen}
    shots = {task.name: worked_examples(task, request.shots) for task in tasks if "fewshot" in request.prompts}

    def examples(problem: Problem) -> list[Shot]:
        return shots[task_of[problem.id]]

    questions: list[Question] = []
    for style in request.prompts:
        questions += make_questions(problems, template, style, examples if style == "fewshot" else lambda _: [])
    return questions, task_of


def worked_examples(task: Task, count: int) -> list[Shot]:
    """The first `count` problems of the train split with their gold answers: never a problem that is asked."""
    size = task.size("train")
    if size is not None and size < count:
        raise BadInput(f"task {task.name} has {size} train problems, --shots {count} asks for more; lower it")
    problems = [task.problem(i, "train") for i in range(count)]
    return [(problem.prompt, task.gold(problem)) for problem in problems]


def _problems(task: Task, request: EvalRequest) -> list[Problem]:
    found: list[Problem] = []
    for split in get_args(Split):
        if request.split in (split, "all"):
            size, count = task.size(split), request.problems - len(found)
            found += [task.problem(i, split) for i in range(count if size is None else min(size, count))]
    if not found:
        raise BadInput(f"task {task.name} has no {request.split} problems; try --split all, or give rows a split")
    return found


def what_was_asked(request: EvalRequest, target: Target, plan: Plan, questions: list[Question]) -> dict[str, Any]:
    """What the chains of an evaluation depend on, for --resume to compare."""
    rows = [[q.style, q.prompt_ids, asdict(q.problem)] for q in questions]
    return {
        "model": target.name,
        "weights": target.fingerprint(),
        "sampler": target.sampler,
        "tasks": list(request.tasks),
        "split": request.split,
        "prompts": list(request.prompts),
        "shots": request.shots if "fewshot" in request.prompts else 0,
        **asdict(plan),
        "problems and prompts": hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16],
    }


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
                    await answer_all(examiner, questions, kept, target.exact, progress.chain)

    with StopSignal() as stop:
        try:
            await stop.guard(work())
        except (Stopped, ServerDown) as error:
            done = f" after {len(kept.groups)} of {len(questions)} questions"
            if kept.path and kept.groups:
                done += f", kept in {kept.path}; --resume goes on"
            raise (Stopped(error.signum, done) if isinstance(error, Stopped) else Fault(f"{error}{done}")) from None


def _table(cells: list[dict[str, Any]]) -> Table:
    names = ["prompt", "budget", "pass@1", "95 % interval", "pass@k", "tokens", "truncated", "unparsed", "forced"]
    table = Table(Column("task", overflow="fold"), *names)
    for cell in cells:
        table.add_row(
            cell["task"],
            cell["prompt"],
            "no cap" if cell["budget"] is None else str(cell["budget"]),
            f"{cell['pass@1']:.3f}",
            "{:.3f} to {:.3f}".format(*cell["ci95"]),
            "  ".join(f"{k}: {value:.3f}" for k, value in cell["pass@k"].items()),
            f"{cell['tokens_mean']:.0f}",
            *(f"{cell[share]:.0%}" for share in ("truncated", "unparsed", "forced_closed")),
        )
    return table
