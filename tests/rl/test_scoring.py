from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rewards.errors import Fault
from rewards.tasks import load_task
from rewards.types import Extras, Problem, Score, Status
from rl.config import parse_config
from rl.scoring import RunScorer, audit_figures, check_rewards
from rollout.evaluate import wilson
from rollout.types import Chain, Group
from tests.fakes import FakePool

PROBLEM = Problem("p", "t", "1+1?", "2", "k", reward="exact_match")


def judge(response: str, problem: Problem) -> bool:
    return response == problem.answer


def ask(scorer: RunScorer, responses: dict[str, str], step: int = 1, problem: Problem = PROBLEM) -> None:
    async def run() -> None:
        for id, response in responses.items():
            await scorer.score(f"{step}/{id}", response, problem, None, False, Extras([], step))

    asyncio.run(run())


def scorer_of(tmp_path: Path, pool: Any, share: float = 1.0, **sizes: int) -> RunScorer:
    config = parse_config(
        {
            "model": {"path": "x"},
            "task": "letters",
            "rewards": {"audit_share": share},
            "rollout": {"problems": 4, **sizes},
        }
    )
    setup = SimpleNamespace(config=config, task=load_task("letters"), spec_of=lambda problem: problem.reward)
    return RunScorer(pool, setup, tmp_path / "audit.jsonl")  # type: ignore[arg-type]


class TwoVerifiers(FakePool):
    """The first wants the answer alone, the second finds it anywhere."""

    async def score(self, chain_id: str, response: str, problem: Problem, spec: Any, *more: Any, **_: Any) -> Score:
        self.asked.append((chain_id, response, spec == "rewards.math:second_opinion"))
        right = problem.answer in response if self.asked[-1][2] else response == problem.answer
        return Score(float(right), right, "ok" if right else "wrong", id=chain_id)


def test_answers_judged_wrong_are_heard_again_and_disagreements_kept(tmp_path: Path) -> None:
    scorer = scorer_of(tmp_path, TwoVerifiers())
    scorer.begin(1)
    ask(scorer, {"c": "it is 2", "a": "2", "b": "two 2", "d": "3"})
    row = scorer.figures(1, [], print)
    rows = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [r["id"] for r in rows] == ["1/b", "1/c"]
    assert rows[0] == {
        "step": 1, "id": "1/b", "problem": "1+1?", "reference": "2", "first": "wrong", "first_detail": "",
        "second": "ok", "answer": "two 2", "response_end": "two 2",
    }  # fmt: skip
    assert {name: row[f"rewards/audit_{name}"] for name in ("checked", "disagreed", "wrong", "right")} == {
        "checked": 3, "disagreed": 2, "wrong": 3, "right": 1,
    }  # fmt: skip
    assert row["rewards/audit_false_negatives"] == pytest.approx(2 / 3)  # 2 missed of 3 right ones
    assert set(scorer.figures(1, [], print)) == {"rewards/skipped_rows", "time/reward"}


def test_a_step_done_again_is_audited_once(tmp_path: Path) -> None:
    scorer = scorer_of(tmp_path, TwoVerifiers())
    for _ in range(2):
        scorer.begin(1)
        ask(scorer, {"c": "it is 2"})
    assert scorer.figures(1, [], print)["rewards/audit_checked"] == 1


@pytest.mark.parametrize(("share", "reward"), [(0.0, "exact_match"), (1.0, "countdown")])
def test_nothing_is_heard_again_without_a_share_or_a_second_verifier(share: float, reward: str, tmp_path: Path) -> None:
    pool = TwoVerifiers()
    scorer = scorer_of(tmp_path, pool, share)
    scorer.begin(1)
    ask(scorer, {"c": "it is 2"}, problem=Problem("p", "t", "1+1?", "2", "k", reward=reward))
    assert len(pool.asked) == 1
    scorer.figures(1, [], print)
    assert not (tmp_path / "audit.jsonl").exists()


def test_large_steps_are_audited_in_a_smaller_share(tmp_path: Path) -> None:
    assert scorer_of(tmp_path, TwoVerifiers(), 0.5, group_size=8).share == 0.5
    assert scorer_of(tmp_path, TwoVerifiers(), 0.5, group_size=64).share == 64 / 256


def test_the_estimate_by_hand() -> None:
    """10 of 50 checked are right after all; of 200 wrong ones 40 would be, beside 160: 40 / 200."""
    found = audit_figures(Counter(checked=50, disagreed=10, wrong=200, right=160))
    low, high = wilson(0.2, 50)
    assert found == {
        "checked": 50, "disagreed": 10, "wrong": 200, "right": 160, "false_negatives": pytest.approx(0.2),
        "false_negatives_low": pytest.approx(low * 200 / (160 + low * 200)),
        "false_negatives_high": pytest.approx(high * 200 / (160 + high * 200)),
    }  # fmt: skip
    assert audit_figures(Counter(wrong=3)) == {"checked": 0, "disagreed": 0, "wrong": 3, "right": 0}
    assert audit_figures(Counter(checked=3, wrong=3))["false_negatives"] == 0
    assert audit_figures(Counter()) == {}


def groups(counts: dict[str, dict[Status, int]]) -> list[Group]:
    """A group for each reward, with so many chains of each status."""
    made = []
    for reward, statuses in counts.items():
        scores = [Score(None, False, s, detail=f"{s} of {reward}") for s, n in statuses.items() for _ in range(n)]
        chains = [Chain(str(k), "p", [1], 1, [False], [0.0], [], "stop", s) for k, s in enumerate(scores)]
        made.append(Group(Problem("p", "t", "?", "2", "k", reward=reward), chains))
    return made


def test_what_fails_is_named_with_counts_while_the_run_goes_on() -> None:
    made = groups({"mine:f": {"wrong": 90, "error": 2, "rejected": 1}, "yours.py:g": {"ok": 6, "error": 1}})
    lines: list[str] = []
    row = check_rewards(made, lambda problem: problem.reward, 0.05, lines.append)
    assert row == {"rewards/error/mine:f": 2, "rewards/rejected/mine:f": 1, "rewards/error/yours.py:g": 1}
    assert lines == [
        "warning: reward mine:f failed on 3 of 100 chains (2 error, 1 rejected): error of mine:f",
        "warning: reward yours.py:g failed on 1 of 100 chains (1 error): error of yours.py:g",
    ]


@pytest.mark.parametrize("status", ["error", "rejected"])
def test_more_than_the_bound_stops_the_run_by_name(status: Status) -> None:
    spec = {"use": "mine:make"}
    at_bound = groups({"mine": {"wrong": 95, status: 5}})
    row = check_rewards(at_bound, lambda problem: spec, 0.05, print)
    assert row == {f'rewards/{status}/{{"use": "mine:make"}}': 5}
    above = groups({"mine": {"wrong": 94, status: 6}})
    with pytest.raises(Fault, match=rf'"mine:make".* failed on 6 of 100 chains \(6 {status}\).*more than 5%'):
        check_rewards(above, lambda problem: spec, 0.05, print)
    fine = groups({"mine": {"ok": 3, "skipped": 3, "truncated": 3}})
    assert check_rewards(fine, lambda problem: "mine", 0.0, print) == {}
    assert check_rewards([], lambda problem: "mine", 0.0, print) == {}
