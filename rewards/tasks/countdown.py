"""Countdown: combine the given numbers, each exactly once, into the target. Hard to solve, easy to check."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import ClassVar

from rewards.tasks.base import STYLE, Generator, Range, about
from rewards.types import Problem

MAX_STEP = 199
"""Largest intermediate value of the reference solution: the word-level vocabulary ends there."""

PLAIN = (
    "Using the numbers {numbers}, each exactly once, with + - * / and parentheses, write an expression that equals "
    "{target}. Write only the expression between <answer> and </answer>."
)


@dataclass(frozen=True)
class Countdown(Generator):
    """Reach a target from given numbers with + - *, each number used exactly once (difficulty: how many numbers)."""

    base: ClassVar[str] = "countdown"
    reward: ClassVar[str] = "countdown"
    numbers: Range = field(default=Range(3, 5), metadata=about("how many numbers, `3` or `3-5`", (2, 6)))
    max_number: int = field(default=15, metadata=about("numbers are 1 to this", (3, 199)))
    max_target: int = field(default=99, metadata=about("targets are 1 to this", (1, 199)))
    style: str = field(default="words", metadata=STYLE)

    def draw(self, rng: random.Random) -> Problem:
        count = self.numbers.draw(rng)
        solved = None
        while solved is None or not 1 <= solved[0] <= self.max_target:  # the count stays: none is favoured
            numbers = [rng.randint(1, self.max_number) for _ in range(count)]
            solved = _combine(numbers, rng)
        target, solution = solved
        key = f"{','.join(map(str, sorted(numbers)))}={target}"
        words = f"{' '.join(map(str, numbers))} : {target}"
        plain = PLAIN.format(numbers=", ".join(map(str, numbers)), target=target)
        return Problem(
            id="",
            task=self.base,
            prompt=plain if self.style == "plain" else words,
            answer=solution,
            key=key,
            difficulty=float(len(numbers)),
            subtask=f"{len(numbers)} numbers",
            meta={"numbers": numbers, "target": target},
        )

    def gold(self, problem: Problem) -> str:
        return self.tagged(problem.answer)


def _combine(numbers: list[int], rng: random.Random) -> tuple[int, str] | None:
    """Join random pairs until one value is left: (value, expression), or None where a step leaves 0..MAX_STEP."""
    pool = [(number, str(number)) for number in numbers]
    while len(pool) > 1:
        (a, left), (b, right) = (pool.pop(rng.randrange(len(pool))) for _ in range(2))
        operator = rng.choice("+-*")
        value = {"+": a + b, "-": a - b, "*": a * b}[operator]
        if not 0 <= value <= MAX_STEP:
            return None
        text = f"{left} {operator} {right}"
        pool.append((value, f"( {text} )" if pool else text))
    return pool[0]
