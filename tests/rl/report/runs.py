"""Run directories as training leaves them, made in seconds: the real tasks, tokenizers, verifiers, cells and writers,
around chains that are written instead of sampled."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from rewards.answer import CLOSE
from rewards.countdown import countdown
from rewards.tasks.countdown import Habits, write_trace
from rewards.types import Problem, Score
from rl.build import Setup, prepare
from rl.config import parse_config
from rl.evaluator import write_summary
from rl.metrics import MetricsLog, rollout_metrics
from rl.rundir import RunDir, result_file, write_json
from rollout.evaluate import make_cell
from rollout.prompt import Template
from rollout.store import SampleStore
from rollout.types import Chain, Group

ROOT = Path(__file__).parents[3]
LIMIT = 160  # sampled tokens of a chain
EVALUATED = 48  # problems

IMPATIENT = Habits(direct=0.2, patient=0.2)
PATIENT = Habits(direct=0.01, patient=1.0, give_up_patient=0.002, slip=0.005)


@lru_cache
def make_setup(name: str, folder: Path, steps: int) -> Setup:
    """A countdown run's parts, with the demo's tokenizer."""
    config = {
        "run": {"name": name, "dir": str(folder)},
        "model": {"path": str(ROOT / "configs/models/countdown-tiny")},
        "task": "countdown?numbers=3-4",
        "rollout": {"problems": 8, "group_size": 4, "max_tokens": LIMIT},
        "train": {"steps": steps},
        "eval": {"every": 1, "problems": EVALUATED, "budgets": [16, 64]},
    }
    return prepare(parse_config(config))


def write_run(folder: Path, steps: int = 8, *, finished: bool = True, name: str = "demo") -> RunDir:
    """A run of `steps` steps: an unfinished one has no final evaluation and no summary."""
    setup, run = make_setup(name, folder, steps if finished else 2 * steps), RunDir(folder / name)
    run.path.mkdir(parents=True)
    run.create(setup.config)
    _evaluate(setup, run, "base", "test", 0.0, [0, 16, 64, None])
    _evaluate(setup, run, "base-patient", "test", 0.4, [None])
    _evaluate(setup, run, "base-votes", "test", 0.0, [None])
    _evaluate(setup, run, "step-0", "val", 0.0, [None])
    log = MetricsLog(run.metrics)
    for step in range(1, steps + 1):
        log.append(_row(setup, step, steps))
        _evaluate(setup, run, f"step-{step}", "val", step / steps, [None])
    if finished:
        _evaluate(setup, run, "final", "test", 1.0, [0, 16, 64, None])
        write_summary(setup, run)
    return run


def make_slim(run: RunDir) -> RunDir:
    """What is kept in the repository of a run: no chains."""
    for path in run.path.rglob("*.zst"):
        path.unlink()
    return run


def write_letters_run(folder: Path, text: str) -> RunDir:
    """A run whose model writes `text`, in its answers, and whose verifier and problem say it too."""
    run = RunDir(folder / "letters")
    run.path.mkdir(parents=True)
    model = ROOT / "configs/models/bytes-tiny"
    run.create(parse_config({"model": {"path": str(model), "think": False}, "task": "letters"}))
    template = Template.load(model, think=False)
    problem = Problem("letters/test/0", "letters", text, "a", "0")
    for label, correct in (("base", False), ("final", True)):
        score = Score(float(correct), correct, "ok" if correct else "wrong", detail=text)
        prompt = template.encode("?")
        ids = [*prompt, *template.tokenizer.encode(text, add_special_tokens=False)]
        chain = _chain("c", problem, ids, len(prompt), set(), score)
        _store(run, label, "test", template, [Group(problem, [chain])], [None])
    return run


def _row(setup: Setup, step: int, steps: int) -> dict[str, Any]:
    """A step's metrics: its chains' are measured on chains, the learner's are of a usual size."""
    config, t = setup.config.rollout, step / steps
    groups = [
        Group(problem, [_solve(setup, problem, t, k, None) for k in range(config.group_size)], step)
        for problem in setup.problems(step)
    ]
    tokens = sum(chain.sampled_count for group in groups for chain in group.chains)
    return {
        "step": step, "version": step - 1, **rollout_metrics(groups), "time/rollout": 9 + 3 * t, "time/reward": 0.4,
        "flops/rollout": 2e6 * tokens, "loss/policy": 0.01, "kl/ref": 0.0, "approx_kl": 0.002 + 0.001 * math.sin(step),
        "clip_fraction": 0.02 * (1 - t), "entropy": 0.6 - 0.3 * t, "grad_norm": 0.4 + 0.1 * math.cos(step),
        "learning_rate": 3e-4 * (1 - t), "mismatch_kl/fresh": 1e-13 * (1 + step % 3), "staleness": 0.0,
        "tokens/trained": tokens, "flops/train": 6e6 * tokens, "padding_waste": 0.04, "time/learn": 4.0, "mfu": 0.2,
        "samples/dropped": 0, "groups/no_variance": 2, "time/sync": 0.2, "time/step": 14.0,
        "chain/direct": 0.2 * (1 - t), "chain/attempts": 3 + 6 * t, "chain/backtracks": 2 + 5 * t,
        "chain/repeated": None if step == 2 else 0.1 + 0.1 * t, "chain/slips": 0.02,
    }  # fmt: skip


def _evaluate(setup: Setup, run: RunDir, label: str, split: Any, t: float, budgets: list[int | None]) -> None:
    problems = setup.eval_problems(split)
    groups = {b: [Group(p, [_solve(setup, p, t, 0, b)]) for p in problems] for b in budgets}
    _store(run, label, split, setup.template, groups[None], budgets, groups, task=setup.task.name)


def _store(
    run: RunDir,
    label: str,
    split: str,
    template: Template,
    groups: list[Group],
    budgets: list[int | None],
    at: dict[int | None, list[Group]] | None = None,
    task: str = "letters",
) -> None:
    cell = partial(
        make_cell, text_of=template.response_text, model=label, task=task, split=split, prompt="cot",
        temperature=1.0, k=1,
    )  # fmt: skip
    run.eval.mkdir(exist_ok=True)
    SampleStore(run.eval / f"{label}.samples.jsonl.zst").append(0, groups)
    cells = [cell((at or {}).get(budget, groups), budget=budget) for budget in budgets]
    write_json(run.eval / f"{label}.json", result_file(cells))


def _solve(setup: Setup, problem: Problem, t: float, k: int, budget: int | None) -> Chain:
    """A trace by an author who grows patient with `t` from 0 to 1, cut where a budget or the limit asks for it."""
    rng = random.Random(f"{problem.id} {k} {t:.3f}")
    words = write_trace(problem, rng, PATIENT if rng.random() < t else IMPATIENT).split()
    thinking, answer = words[: words.index(CLOSE)], words[words.index(CLOSE) + 1 :]
    forced = budget is not None and len(thinking) > budget
    if forced:
        thinking = thinking[:budget]
        answer = write_trace(problem, rng, Habits(direct=1.0)).split()[1:]
    words = [*thinking, CLOSE, *answer, "<eos>"][:LIMIT]
    prompt = setup.template.encode(problem.prompt)
    ids = [*prompt, *setup.template.tokenizer.encode(" ".join(words), add_special_tokens=False)]
    inserted = {len(prompt) + len(thinking)} if forced else set()
    chain = _chain(f"0/{problem.id}/{k}", problem, ids, len(prompt), inserted, None)
    if CLOSE not in words:
        return chain.with_score(Score(0.0, False, "truncated", detail="cut by the length cap"))
    return chain.with_score(replace(countdown(setup.template.response_text(chain), problem), id=chain.id))


def _chain(name: str, problem: Problem, ids: list[int], prompt: int, inserted: set[int], score: Score | None) -> Chain:
    sampled = [t >= prompt and t not in inserted for t in range(len(ids))]
    logprobs = [-0.5 if flag else 0.0 for flag in sampled]
    return Chain(name, problem.id, ids, prompt, sampled, logprobs, [(prompt, 0)], "stop", score)


def write_text(run: RunDir, label: str, text: str) -> None:
    """Put anything into an evaluation's file."""
    run.eval.mkdir(exist_ok=True)
    (run.eval / f"{label}.json").write_text(text)


def read_cells(run: RunDir, label: str) -> list[dict[str, Any]]:
    """The cells of an evaluation's file."""
    cells: list[dict[str, Any]] = json.loads((run.eval / f"{label}.json").read_text())["cells"]
    return cells
