"""Search traces for countdown, written as an impatient human would: what the demo's base model is pre-trained on.

A trace tries random combinations until one hits, or until its author gives up; the answer repeats the last attempt.
Its weaknesses are deliberate, and data: some authors guess without thinking, most give up early, results slip.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from rewards.tasks.countdown import MAX_STEP
from rewards.types import Problem

OPEN, CLOSE = "<think>", "</think>"
MAX_ATTEMPTS = 64  # three numbers: up to 830 words, four: up to 1,200


@dataclass(frozen=True)
class Habits:
    """Shares and probabilities of the authors."""

    direct: float = 0.2  # of the traces: answer at once, with a guess
    patient: float = 0.2  # of the traces: seldom give up
    give_up_patient: float = 0.02  # after a failed attempt
    give_up: float = 0.35  # the same, of everybody else
    slip: float = 0.02  # of the results: wrong by a little


@dataclass(frozen=True)
class Attempt:
    """One combination of all numbers."""

    text: str  # e.g. "13 - 10 = 3 * 2 = 6"
    expression: str  # e.g. "( 13 - 10 ) * 2"
    value: int  # what its author believes


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
        attempt = _draw(numbers, rng, slip)
        if attempt is not None:
            return attempt


def _draw(numbers: list[int], rng: random.Random, slip: float) -> Attempt | None:
    pool = [(number, str(number)) for number in numbers]
    text, result = "", None
    while len(pool) > 1:
        left, right = (pool.pop(rng.randrange(len(pool))) for _ in range(2))
        operator = rng.choice("+-*")
        value = {"+": left[0] + right[0], "-": left[0] - right[0], "*": left[0] * right[0]}[operator]
        if rng.random() < slip:
            value += rng.choice((-2, -1, 1, 2))
        if not 0 <= value <= MAX_STEP:
            return None
        step = f"{operator} {right[0]} = {value}"
        goes_on = left is result  # "= 3 * 2 = 6" rather than "= 3 , 3 * 2 = 6"
        text += f" {step}" if goes_on else f"{' , ' if text else ''}{left[0]} {step}"
        expression = f"{left[1]} {operator} {right[1]}"
        result = (value, f"( {expression} )" if pool else expression)
        pool.append(result)
    return Attempt(text, pool[0][1], pool[0][0])
