"""What RL changed: the anatomy by difficulty, and the controls that say what patience and votes would have given."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from rewards.tasks import source_of
from rl.build import prepare
from rl.config import parse_config
from rl.evaluator import Evaluator, anatomy, read_cells, read_groups, samples_path, vote_controls, write_changes
from rl.rundir import RunDir, write_json
from rl.views import RunProgress, words
from rollout.evaluate import make_cells
from rollout.store import SampleStore
from rollout.types import Chain, Group
from tests.fakes import FakeSampler

ROOT = Path(__file__).parents[2]
CONFIG = parse_config(
    {
        "model": {"path": str(ROOT / "configs/models/countdown-tiny")},
        "task": "countdown?numbers=3",
        "rollout": {"max_tokens": 96},
        "budget": {"answer": 16},
        "train": {"steps": 1},
        "eval": {"every": 1, "problems": 4},
    }
)
MISS, HIT = "1 + 1 = 2 ? 9 .", "4 + 5 = 9 ? 9 !"


@pytest.fixture(scope="module")
def setup():
    return prepare(CONFIG)


class Verdicts:
    """A pool that calls a response right where it holds `!`."""

    async def score(self, chain_id, response, problem, spec, truncated=False, extras=None):
        from rewards.types import Score

        right = "!" in response
        return Score(float(right), right, "ok" if right else "wrong")


def policy(setup, texts: list[str]) -> FakeSampler:
    """Says one text after the other, whatever it is asked."""
    ids = [setup.template.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    left = iter(ids)
    return FakeSampler(lambda prompt, params: next(left))


async def base_group(setup, text: str) -> Group:
    from rollout.budget import Budgeted
    from rollout.chain import bare_chain

    problem = setup.task.problem(0, "test")
    bare = bare_chain(f"cot/{problem.id}/0", problem.id, setup.template.encode(problem.prompt))
    asked = Budgeted(policy(setup, [text]), setup.template, lambda s: s, 1.0, max_tokens=96, answer=16)
    chain = await asked.sample(bare, None)
    return Group(problem, [chain])


@pytest.mark.parametrize("said", [MISS, f"{HIT} {MISS}", ""])
async def test_the_patient_base_goes_on_until_its_last_attempt_claims_a_hit(setup, tmp_path, said: str) -> None:
    run = RunDir(tmp_path / "run")
    store(setup, run, "base", [await base_group(setup, f"{said} </think> 1 + 1 <eos>")])
    sampler = policy(setup, [f"{said} </think> 1 + 1 <eos>", f"{HIT} </think> 4 + 5 <eos>"])
    await Evaluator(setup, run, Verdicts(), RunProgress(1)).run_patient(sampler)
    ((chain,),) = (group.chains for group in read_groups(run, "base-patient"))
    text = setup.template.response_text(chain)
    assert text.split() == f"<think> {said} {said} {HIT} </think> 4 + 5".split()
    (cell,) = read_cells(run, "base-patient") or []
    assert (cell["pass@1"], cell["task"], cell["model"]) == (1.0, "countdown?numbers=3", "base-patient")


async def test_budgets_bring_answers_at_once_and_thinking_chains_are_kept(setup, tmp_path, monkeypatch) -> None:
    run, progress = RunDir(tmp_path / "run"), RunProgress(1)
    said: list[str] = []
    monkeypatch.setattr(progress, "phase", said.append)
    sampler = policy(setup, [f"{HIT} </think> 4 + 5 <eos>"] * 4 + ["4 + 5 <eos>"] * 99)
    await Evaluator(setup, run, Verdicts(), progress).run_once("base", "test", sampler, budgets=[2])
    cells = read_cells(run, "base") or []
    assert [(c["prompt"], c["budget"], c["n_problems"]) for c in cells] == [
        ("cot", 2, 4), ("cot", None, 4), ("direct", None, 4),
    ]  # fmt: skip
    assert said == [f"evaluating {i}/8" for i in range(1, 9)]
    kept = [chain.id for group in read_groups(run, "base") for chain in group.chains]
    assert kept == [f"cot/{problem.id}/0" for problem in setup.eval_problems("test")]


def store(setup, run: RunDir, label: str, groups: list[Group]) -> None:
    """An evaluation: its chains and, of those that are scored, its cells."""
    run.eval.mkdir(parents=True, exist_ok=True)
    SampleStore(samples_path(run, label)).append(0, groups)
    plan, task_of = replace(setup.plan, samples=1, budgets=(None,)), partial(source_of, setup.task)
    if all(chain.score for group in groups for chain in group.chains):
        cells = make_cells(groups, plan, task_of, setup.template.response_text, label, "test")
        write_json(run.eval / f"{label}.json", {"cells": cells})


def scored(setup, group: Group, right: bool, difficulty: float = 3.0) -> Group:
    from rewards.types import Score

    score = Score(float(right), right, "ok" if right else "wrong")
    chains = [chain.with_score(score) for chain in group.chains]
    return Group(replace(group.problem, difficulty=difficulty), chains)


async def test_anatomy_is_told_by_difficulty(setup) -> None:
    short = scored(setup, await base_group(setup, "</think> 1 + 1 <eos>"), False)
    long = scored(setup, await base_group(setup, f"{MISS} {MISS} </think> 1 + 1 <eos>"), True, 4.0)
    found = anatomy([short, long], setup.template.response_text)
    assert found["direct"] == 0.5
    assert found["attempts"] == 1.0
    assert found["repeated"] == 0.5  # of chains that tried at all
    assert found["by_difficulty"]["3"] == pytest.approx({"tokens": 5, "pass@1": 0, "direct": 1, "attempts": 0})
    assert found["by_difficulty"]["4"]["tokens"] == 21
    assert found["by_difficulty"]["4"]["pass@1"] == 1


def test_votes_are_taken_at_no_more_than_the_final_tokens() -> None:
    cell = {
        "majority@k": {"1": 0.2, "2": 0.25, "4": 0.3, "8": 0.35},
        "pass@k": {"1": 0.2, "2": 0.3, "4": 0.5, "8": 0.7},
        "tokens_mean": 40.0,
        "n_problems": 100,
    }
    majority, best = vote_controls(cell, tokens=170.0)
    assert (majority["pass@1"], majority["tokens_mean"]) == (0.3, 160.0)
    assert (best["pass@1"], best["name"]) == (0.5, "base, best by the verifier of 4")
    assert majority["ci95"][0] < 0.3 < majority["ci95"][1]
    assert vote_controls(cell, tokens=10.0)[0]["tokens_mean"] == 40.0


async def test_the_gain_beyond_patience_is_paired(setup, tmp_path) -> None:
    run = RunDir(tmp_path / "run")
    group = await base_group(setup, f"{MISS} </think> 1 + 1 <eos>")
    for label, right in [("base", False), ("base-patient", True), ("final", True)]:
        store(setup, run, label, [scored(setup, group, right)])
    store(setup, run, "base-votes", [scored(setup, group, False)])
    changes = write_changes(setup, run)
    assert json.loads((run.eval / "changes.json").read_text()) == changes
    assert changes["beyond_patience"]["pass@1"] == 0.0
    assert [c["pass@1"] for c in changes["controls"]] == [1.0, 0.0, 0.0]
    assert words("changes", changes).splitlines()[-1] == "gain beyond undone impatience: +0.000 [+0.000, +0.000]"


def test_a_chain_in_other_words_has_tokens_alone(setup) -> None:
    chain = Chain("c", "p", [1, 2], 1, [False, True], [0.0, -1.0], [(1, 0)], "stop")
    found = anatomy([Group(replace(setup.task.problem(0, "test"), task="mine"), [chain])], lambda _: "so it is 4")
    assert found["by_difficulty"]["3"] == {"pass@1": 0.0, "tokens": 1.0}


def test_a_forced_close_fits_the_context(setup) -> None:
    longest = max(len(setup.template.encode(p.prompt)) for p in setup.eval_problems("test"))
    assert setup.context == longest + CONFIG.rollout.max_tokens + len(setup.template.close_ids)
