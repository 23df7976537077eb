from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from rewards.errors import Fault
from rewards.types import Extras, Problem, Score, Status
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
            await scorer.score(id, response, problem, None, False, Extras([], step))

    asyncio.run(run())


class TwoVerifiers(FakePool):
    """The first wants the answer alone, the second finds it anywhere."""

    async def score(self, chain_id: str, response: str, problem: Problem, spec: Any, *more: Any, **_: Any) -> Score:
        self.asked.append((chain_id, response, spec == "rewards.audit:second_opinion"))
        right = problem.answer in response if self.asked[-1][2] else response == problem.answer
        return Score(float(right), right, "ok" if right else "wrong", id=chain_id)


def test_answers_judged_wrong_are_heard_again_and_disagreements_kept() -> None:
    scorer = RunScorer(TwoVerifiers(), audit=1.0)  # type: ignore[arg-type]
    scorer.begin(1)
    ask(scorer, {"c": "it is 2", "a": "2", "b": "two 2", "d": "3"})
    row, rows = scorer.take_audit(1)
    assert [r["id"] for r in rows] == ["b", "c"]
    assert rows[0] == {
        "step": 1, "id": "b", "problem": "1+1?", "reference": "2", "first": "wrong", "first_detail": "", "second": "ok",
        "answer": "two 2", "response_end": "two 2",
    }  # fmt: skip
    assert {name: row[f"rewards/audit_{name}"] for name in ("checked", "disagreed", "wrong", "right")} == {
        "checked": 3, "disagreed": 2, "wrong": 3, "right": 1,
    }  # fmt: skip
    assert row["rewards/audit_false_negatives"] == pytest.approx(2 / 3)  # 2 missed of 3 right ones
    assert scorer.take_audit(1) == ({}, [])


def test_a_step_done_again_is_audited_once() -> None:
    scorer = RunScorer(TwoVerifiers(), audit=1.0)  # type: ignore[arg-type]
    for _ in range(2):
        scorer.begin(1)
        ask(scorer, {"c": "it is 2"})
    assert scorer.take_audit(1)[0]["rewards/audit_checked"] == 1


@pytest.mark.parametrize(
    ("share", "step", "reward"), [(0.0, 1, "exact_match"), (1.0, 2, "exact_match"), (1.0, 1, "countdown")]
)
def test_nothing_is_heard_again_without_a_share_a_step_or_a_second_verifier(
    share: float, step: int, reward: str
) -> None:
    pool = TwoVerifiers()
    scorer = RunScorer(pool, audit=share)  # type: ignore[arg-type]
    scorer.begin(1)
    ask(scorer, {"c": "it is 2"}, step, Problem("p", "t", "1+1?", "2", "k", reward=reward))
    assert len(pool.asked) == 1
    assert not scorer.take_audit(1)[1]


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
    row, lines = check_rewards(made, lambda problem: problem.reward, 0.05)
    assert row == {"rewards/error/mine:f": 2, "rewards/rejected/mine:f": 1, "rewards/error/yours.py:g": 1}
    assert lines == [
        "reward mine:f failed on 3 of 100 chains (2 error, 1 rejected): error of mine:f",
        "reward yours.py:g failed on 1 of 100 chains (1 error): error of yours.py:g",
    ]


@pytest.mark.parametrize("status", ["error", "rejected"])
def test_more_than_the_bound_stops_the_run_by_name(status: Status) -> None:
    spec = {"use": "mine:make"}
    at_bound = groups({"mine": {"wrong": 95, status: 5}})
    assert check_rewards(at_bound, lambda problem: spec, 0.05)[0] == {f'rewards/{status}/{{"use": "mine:make"}}': 5}
    above = groups({"mine": {"wrong": 94, status: 6}})
    with pytest.raises(Fault, match=rf'"mine:make".* failed on 6 of 100 chains \(6 {status}\).*more than 5%'):
        check_rewards(above, lambda problem: spec, 0.05)
    assert check_rewards(groups({"mine": {"ok": 3, "skipped": 3, "truncated": 3}}), lambda p: "mine", 0.0) == ({}, [])
    assert check_rewards([], lambda problem: "mine", 0.0) == ({}, [])
