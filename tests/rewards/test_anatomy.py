"""What a search chain consists of, on chains written by hand and on traces whose habits are known."""

from __future__ import annotations

import random

import pytest

from rewards.tasks import load_task
from rewards.tasks.countdown import Habits, Sum, chain_traits, read_tries, write_trace
from rewards.types import Problem

PROBLEM = Problem(id="p", task="countdown?numbers=3", prompt="2 13 10 : 5", answer="", key="")
SEARCH = "<think> 13 - 10 = 3 * 2 = 6 ? 5 . 10 - 2 = 8 , 13 - 8 = 5 ? 5 ! </think> 13 - ( 10 - 2 )"


def test_sums_are_read_in_both_notations() -> None:
    first, second = read_tries(SEARCH)
    assert first.sums == (Sum(13, "-", 10, 3), Sum(3, "*", 2, 6))
    assert second.sums == (Sum(10, "-", 2, 8), Sum(13, "-", 8, 5))
    assert (first.claimed, second.claimed) == (False, True)


@pytest.mark.parametrize(
    ("response", "traits"),
    [
        (SEARCH, {"direct": 0, "attempts": 2, "backtracks": 1, "repeated": 0, "slips": 0, "gave_up": 0}),
        ("<think> </think> 2 + 13 - 10", {"direct": 1, "attempts": 0}),
        ("</think> 2 + 13 - 10", {"direct": 1, "attempts": 0}),
        ("<think> 1 + 1 = 3 ? 5 . 1 + 1 = 2 ? 5 . 2 + 1 = 3 ? 5 . </think> 2 + 1",
         {"direct": 0, "attempts": 3, "backtracks": 2, "repeated": 1 / 3, "slips": 1 / 3, "gave_up": 1}),
        ("<think> 1 + 1 = 2 ? 5 . 3 + ",
         {"direct": 0, "attempts": 1, "backtracks": 0, "repeated": 0, "slips": 0, "gave_up": 0}),
        ("<think> let me see </think> 5", {"direct": 0}),
        ("<think>", {}),
        ("<think> ٣ + 1 = 4 ? 5 . </think>",
         {"direct": 0, "attempts": 1, "backtracks": 0, "repeated": 0, "slips": 0, "gave_up": 1}),
    ],
)  # fmt: skip
def test_traits_of_one_chain(response: str, traits: dict[str, float]) -> None:
    assert chain_traits(PROBLEM, response) == pytest.approx(traits)


def test_other_tasks_tell_nothing() -> None:
    assert chain_traits(Problem(id="p", task="letters", prompt="", answer="", key=""), SEARCH) == {}


def test_traces_have_the_habits_they_were_written_with() -> None:
    task, rng, habits = load_task("countdown?numbers=3"), random.Random(0), Habits(direct=0.3, slip=0.1)
    problems = [task.problem(i, "train") for i in range(1500)]
    traits = [chain_traits(p, "<think> " + write_trace(p, rng, habits)) for p in problems]
    assert sum(t["direct"] for t in traits) / len(traits) == pytest.approx(0.3, abs=0.04)
    searched = [t for t in traits if not t["direct"]]
    assert sum(t["slips"] for t in searched) / len(searched) == pytest.approx(0.1, abs=0.03)
    assert all(t["attempts"] >= 1 and t["backtracks"] <= t["attempts"] - 1 for t in searched)


def test_hostile_text_is_read_in_linear_time() -> None:
    assert chain_traits(PROBLEM, "<think>" + "1 + 1 = 2 " * 50_000) == {"direct": 0.0}
    assert chain_traits(PROBLEM, "<think>" + "? " * 50_000) == {"direct": 0.0}
