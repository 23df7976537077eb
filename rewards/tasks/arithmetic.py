"""Chained arithmetic: a sum that grows by one operation at a time."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import ClassVar

from rewards.tasks.base import STYLE, Generator, Range, about
from rewards.types import Problem

MAX_STEP = 199
"""Values stay in 0..MAX_STEP on the way: the word-level vocabulary ends there."""

PLAIN = "Start with {start}, then {chain}. Write only the resulting number between <answer> and </answer>."
VERBS = {"+": "add", "-": "subtract", "*": "multiply by"}


@dataclass(frozen=True)
class Arithmetic(Generator):
    """Work out a chain of + - * from the inside out (difficulty: how many operations)."""

    base: ClassVar[str] = "arithmetic"
    reward: ClassVar[str] = "exact_match"
    operations: Range = field(default=Range(1, 6), metadata=about("how many operations, `2` or `1-6`", (1, 12)))
    max_number: int = field(default=15, metadata=about("numbers are 1 to this", (3, 199)))
    style: str = field(default="words", metadata=STYLE)

    def draw(self, rng: random.Random) -> Problem:
        count = self.operations.draw(rng)
        start = value = rng.randint(1, self.max_number)
        steps: list[tuple[str, int]] = []
        while len(steps) < count:
            operator, number = rng.choice("+-*"), rng.randint(1, self.max_number)
            reached = {"+": value + number, "-": value - number, "*": value * number}[operator]
            if 0 <= reached <= MAX_STEP:  # + or - by a small number is always possible, so this ends
                value = reached
                steps.append((operator, number))
        return Problem(
            id="",
            task=self.base,
            prompt=_plain(start, steps) if self.style == "plain" else _words(start, steps),
            answer=str(value),
            key=str(start) + "".join(f"{operator}{number}" for operator, number in steps),
            difficulty=float(count),
            subtask=f"{count} operation{'s' if count > 1 else ''}",
        )

    def gold(self, problem: Problem) -> str:
        return self.tagged(problem.answer)


def _words(start: int, steps: list[tuple[str, int]]) -> str:
    text = str(start)
    for k, (operator, number) in enumerate(steps):
        text = f"( {text} ) {operator} {number}" if k else f"{text} {operator} {number}"
    return f"{text} ="


def _plain(start: int, steps: list[tuple[str, int]]) -> str:
    chain = ", ".join(f"{VERBS[operator]} {number}" for operator, number in steps)
    return (
        f"Start with {start}, then {chain}. What is the result? Write only the number between <answer> and </answer>."
    )
