"""Countdown traces: true sums but for slips, answers that repeat the last attempt, shares as stated."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from rewards.answer import CLOSE
from rewards.countdown import countdown, evaluate, tokenise
from rewards.tasks import load_task
from rewards.tasks.base import MAX_STEP
from rewards.tasks.countdown import Habits, try_once, write_trace

EXACT = Habits(direct=0.0, slip=0.0)


@pytest.mark.parametrize("count", [3, 4, 5])
def test_an_attempt_is_what_its_expression_says(count: int) -> None:
    rng = random.Random(count)
    for _ in range(300):
        numbers = [rng.randint(1, 15) for _ in range(count)]
        attempt = try_once(numbers, rng)
        tokens = tokenise(attempt.expression)
        assert evaluate(tokens) == attempt.value
        assert Counter(t for t in tokens if isinstance(t, int)) == Counter(numbers)
        assert attempt.text.endswith(f"= {attempt.value}")
        assert attempt.text.count("=") == count - 1
        assert all(int(n) <= MAX_STEP for n in re.findall(r"\d+", attempt.text))


def test_every_step_of_a_trace_is_a_true_sum_without_slips() -> None:
    task, rng = load_task("countdown?numbers=3-4"), random.Random(0)
    for i in range(200):
        problem = task.problem(i, "train")
        thought, _, answer = write_trace(problem, rng, EXACT).partition(CLOSE)
        for attempt in filter(None, re.split(r"[.!]", thought.strip())):
            sums = re.sub(r"= (\d+) ([-+*])", r"= \1 , \1 \2", attempt.split("?")[0]).split(",")
            for line in sums:
                left, _, right = line.partition("=")
                assert evaluate(tokenise(left)) == int(right)
        ends_right = thought.rstrip().endswith("!")
        assert countdown(f"<think>{thought}{CLOSE}{answer}", problem).correct == ends_right


def test_shares_of_habits_are_what_the_data_holds() -> None:
    task, rng = load_task("countdown?numbers=3"), random.Random(1)
    problems = [task.problem(i, "train") for i in range(1500)]
    traces = [write_trace(problem, rng) for problem in problems]
    direct = sum(trace.startswith(CLOSE) for trace in traces) / len(traces)
    assert direct == pytest.approx(0.2, abs=0.03)
    solved = sum(countdown(f"<think>{t}", p).correct for t, p in zip(traces, problems, strict=True)) / len(traces)
    assert 0.2 < solved < 0.4  # the ceiling of what imitation can reach
    slipped = [write_trace(problem, rng, Habits(direct=0.0, slip=0.5)) for problem in problems[:100]]
    assert sum(countdown(f"<think>{t}", p).correct for t, p in zip(slipped, problems, strict=False)) < 30
