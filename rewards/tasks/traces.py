"""Search traces for countdown, written as an impatient human would: what the demo's base model is pre-trained on.

A trace tries random combinations until one hits, or until its author gives up; the answer repeats the last attempt.
Its weaknesses are deliberate, and data: some authors guess without thinking, most give up early, results slip.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from rewards.answer import CLOSE
from rewards.tasks.countdown import Attempt, combine
from rewards.types import Problem

MAX_ATTEMPTS = 64  # three numbers: up to 830 words, four: up to 1,200


@dataclass(frozen=True)
class Habits:
    """Shares and probabilities of the authors."""

    direct: float = 0.2  # of the traces: answer at once, with a guess
    patient: float = 0.2  # of the traces: seldom give up
    give_up_patient: float = 0.02  # after a failed attempt
    give_up: float = 0.35  # the same, of everybody else
    slip: float = 0.02  # of the results: wrong by a little


def write_trace(problem: Problem, rng: random.Random, habits: Habits | None = None) -> str:
    """Everything after a prompt's `<think>`: attempts, `</think>`, answer; words apart by blanks.

    `problem` is of the countdown task (numbers and target in meta).
    """
    habits = habits or Habits()
    numbers, target = problem.meta["numbers"], problem.meta["target"]
    kind = rng.random()
    attempt = try_once(numbers, rng, habits.slip)
    if kind < habits.direct:
        return f"{CLOSE} {attempt.expression}"
    quits = habits.give_up_patient if kind < habits.direct + habits.patient else habits.give_up
    words: list[str] = []
    for _ in range(MAX_ATTEMPTS):
        hit = attempt.value == target
        # the target is written again behind each attempt: without it a model marks only one hit in seven
        words.append(f"{attempt.text} ? {target} {'!' if hit else '.'}")
        if hit or rng.random() < quits:
            break
        attempt = try_once(numbers, rng, habits.slip)
    return " ".join([*words, CLOSE, attempt.expression])


def try_once(numbers: list[int], rng: random.Random, slip: float = 0.0) -> Attempt:
    """A random combination of all numbers whose intermediate values are 0 to MAX_STEP."""
    while True:
        attempt = combine(numbers, rng, slip)
        if attempt is not None:
            return attempt
