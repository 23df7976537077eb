"""Countdown: combine the given numbers, each exactly once, into the target. Hard to solve, easy to check."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

from rewards.tasks.base import MAX_STEP, OPERATIONS, Generator, number, style
from rewards.types import Problem

PLAIN = (
    "Using the numbers {numbers}, each exactly once, with + - * / and parentheses, write an expression that equals "
    "{target}. Write only the expression between <answer> and </answer>."
)


@dataclass(frozen=True)
class Countdown(Generator):
    """Reach a target from given numbers with + - *, each number used exactly once (difficulty: how many numbers)."""

    base = "countdown"
    reward = "countdown"
    numbers: tuple[int, int] = number((3, 5), (2, 6), "how many numbers, `3` or `3-5`")
    max_number: int = number(15, (3, 199), "numbers are 1 to this")
    max_target: int = number(99, (1, 199), "targets are 1 to this")
    style: str = style()

    def draw(self, rng: random.Random) -> Problem:
        count = rng.randint(*self.numbers)
        solved = None
        while solved is None or not 1 <= solved.value <= self.max_target:  # the count stays: none is favoured
            numbers = [rng.randint(1, self.max_number) for _ in range(count)]
            solved = combine(numbers, rng)
        words = f"{' '.join(map(str, numbers))} : {solved.value}"
        plain = PLAIN.format(numbers=", ".join(map(str, numbers)), target=solved.value)
        return Problem(
            id="",
            task=self.base,
            prompt=plain if self.style == "plain" else words,
            answer=solved.expression,
            key=f"{','.join(map(str, sorted(numbers)))}={solved.value}",
            difficulty=float(count),
            subtask=f"{count} numbers",
            meta={"numbers": numbers, "target": solved.value},
        )


class Attempt(NamedTuple):
    """One combination of all numbers."""

    text: str  # e.g. "13 - 10 = 3 * 2 = 6"
    expression: str  # e.g. "( 13 - 10 ) * 2"
    value: int  # what its author believes


def combine(numbers: list[int], rng: random.Random, slip: float = 0.0) -> Attempt | None:
    """Join random pairs until one value is left; None where a step leaves 0..MAX_STEP.

    slip: probability that a step's result is wrong by a little.
    """
    pool = [(number, str(number)) for number in numbers]
    text, result = "", None
    while len(pool) > 1:
        left, right = (pool.pop(rng.randrange(len(pool))) for _ in range(2))
        operator = rng.choice("+-*")
        value = OPERATIONS[operator](left[0], right[0])
        if slip and rng.random() < slip:
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
