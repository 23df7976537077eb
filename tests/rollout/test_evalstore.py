"""Evaluations that go on: a kill at any point, torn files, requests that differ, and how much is asked at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rewards.errors import BadInput
from rewards.types import Problem
from rollout import store
from rollout.collect import Examiner, Plan, Question, make_questions
from rollout.evaluate import make_cells
from rollout.prompt import Template
from rollout.sampling import SamplingParams
from rollout.store import EvalStore, SampleStore, read
from rollout.types import Completion
from tests.fakes import FakePool, FakeSampler, word_tokenizer

TEMPLATE = Template(word_tokenizer(), think=True, stop_ids=(2,))
PLAN = Plan(samples=2, temperature=1.0, budgets=(None, 4), max_tokens=24, answer=8, seed=0)
PROBLEMS = [Problem(f"p{i}", "toy", str(i), 5, f"k{i}", subtask="s") for i in range(10)]
QUESTIONS: list[Question] = [q for style in ("cot", "direct") for q in make_questions(PROBLEMS, TEMPLATE, style)]
REQUEST = {"model": "m", "temperature": 1.0, "tasks": ("toy",)}


class Dying(FakeSampler):
    """A Markov chain that fails at request number `last`, and records how many are under way at once."""

    def __init__(self, last: int = 10**9) -> None:
        super().__init__(vocab=40)
        self.last, self.open, self.most = last, 0, 0

    async def sample(self, prompt_ids: Any, params: SamplingParams) -> Completion:
        if len(self.requests) >= self.last:
            raise RuntimeError("killed")
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            await asyncio.sleep(0)
            return await super().sample(prompt_ids, params)
        finally:
            self.open -= 1


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("CHUNK", 6), ("IN_FLIGHT", 6)):
        monkeypatch.setattr(store, name, value)


def examiner(sampler: Any, plan: Plan = PLAN) -> Examiner:
    return Examiner(sampler, TEMPLATE, FakePool(lambda response, problem: len(response) % 2 == 0), lambda p: None, plan)


async def answers(
    path: Path | None,
    sampler: Any,
    resume: bool = False,
    exact: bool = True,
    on_chain: Callable[[], None] = lambda: None,
) -> EvalStore:
    kept = EvalStore(path, REQUEST, resume)
    kept.begin()
    await kept.answer(examiner(sampler), QUESTIONS, exact, on_chain)
    return kept


def cells(kept: EvalStore) -> list[dict[str, Any]]:
    groups = [kept.groups[q.style, q.problem.id] for q in QUESTIONS]
    return make_cells(groups, PLAN, lambda p: p.task, TEMPLATE.response_text, "m", "test", [1, 2])


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("last", [0, 7, 30, 55])
async def test_a_killed_evaluation_ends_as_a_whole_one(tmp_path: Path, last: int, exact: bool) -> None:
    whole = await answers(None, Dying(), exact=exact)
    path, sampler = tmp_path / "e.samples.jsonl.zst", Dying(last)
    with pytest.raises(RuntimeError, match="killed"):
        await answers(path, sampler, exact=exact)
    with path.open("ab") as file:
        file.write(b"\x28\xb5\x2f\xfd\x04")  # the beginning of a frame
    again = Dying()
    chains: list[int] = []
    kept = await answers(path, again, resume=True, exact=exact, on_chain=lambda: chains.append(1))
    assert {key: group.chains for key, group in kept.groups.items()} == {k: g.chains for k, g in whole.groups.items()}
    assert cells(kept) == cells(whole)
    assert len(chains) < 40 or last <= 7  # something was kept
    finished = Dying()
    assert cells(await answers(path, finished, resume=True, exact=exact)) == cells(whole)
    assert finished.requests == []
    frames = list(read(path))
    assert [step for step, _ in frames] == list(range(len(frames)))
    assert frames[0] == (0, [])  # the request's


@pytest.mark.parametrize("last", [30, 10**9])
async def test_what_is_answered_is_on_the_disk_at_every_end(tmp_path: Path, last: int) -> None:
    path = tmp_path / "e.samples.jsonl.zst"
    with contextlib.suppress(RuntimeError):
        await answers(path, Dying(last), exact=False)
    kept = EvalStore(path, REQUEST, resume=True).groups
    assert 3 < len(kept) < 20 if last == 30 else len(kept) == 20


async def test_exact_chunks_wait_for_each_other_and_others_roll_on() -> None:
    """Three questions of two chains each are together; without that, six chains are under way at any time."""
    exact, rolling = Dying(), Dying()
    await answers(None, exact)
    await answers(None, rolling, exact=False)
    first = [ids for ids, _ in exact.requests[:6]]
    assert first == [QUESTIONS[i // 2].prompt_ids for i in range(6)]
    assert {tuple(ids[:2]) for ids, _ in exact.requests[6:10]} <= {tuple(q.prompt_ids[:2]) for q in QUESTIONS[:3]}
    assert rolling.most <= 6
    assert len(rolling.requests) == len(exact.requests)


async def test_anew_leaves_nothing_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "e.samples.jsonl.zst"
    await answers(path, Dying())
    size = path.stat().st_size
    kept = EvalStore(path, REQUEST, resume=False)
    assert kept.unanswered(QUESTIONS) == QUESTIONS
    assert path.stat().st_size == size  # nothing goes before something is asked
    kept.begin()
    assert [groups for _, groups in read(path)] == [[]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperature": 0.5}, "made with temperature 1.0, not 0.5"),
        ({"tasks": ("toy", "other")}, 'made with tasks \\["toy"\\], not \\["toy", "other"\\]'),
        ({"new": 1}, "made with new null, not 1"),
    ],
)
async def test_another_request_is_refused_by_name(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "e.samples.jsonl.zst"
    await answers(path, Dying())
    with pytest.raises(BadInput, match=words):
        EvalStore(path, REQUEST | change, resume=True)
    assert len(EvalStore(path, dict(reversed(REQUEST.items())), resume=True).groups) == len(QUESTIONS)


async def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "base.samples.jsonl.zst"
    SampleStore(path).append(0, list((await answers(None, Dying())).groups.values()))
    with pytest.raises(BadInput, match="no evaluation that can be gone on with"):
        EvalStore(path, REQUEST, resume=True)
