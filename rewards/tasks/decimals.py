"""Which of two decimals is larger: 9.11 or 9.8."""

import random
from dataclasses import dataclass
from fractions import Fraction

from rewards.tasks.base import Generator, number
from rewards.types import Problem

PROMPT = "Which is larger, {} or {}? Write only the number between <answer> and </answer>."


@dataclass(frozen=True)
class Decimals(Generator):
    """Say which of two decimals with the same whole part is larger (difficulty: how many places)."""

    base = "decimals"
    reward = "exact_match"
    places: tuple[int, int] = number((1, 3), (1, 6), "digits after the point, `2` or `1-3`")
    max_whole: int = number(99, (0, 9999), "whole parts are 0 to this")

    def draw(self, rng: random.Random) -> Problem:
        whole = rng.randint(0, self.max_whole)
        pair: list[str] = []
        while len(pair) < 2 or Fraction(pair[0]) == Fraction(pair[1]):
            pair = [f"{whole}." + "".join(rng.choices("0123456789", k=rng.randint(*self.places))) for _ in range(2)]
        larger, smaller = sorted(pair, key=Fraction, reverse=True)
        order = (len(larger) > len(smaller)) - (len(larger) < len(smaller))
        places = max(map(len, pair)) - len(f"{whole}.")
        subtask = ("as many places", "the longer is larger", "the shorter is larger")[order]
        return Problem("", self.base, PROMPT.format(*pair), larger, f"{smaller} < {larger}", float(places), subtask)

    def gold(self, problem: Problem) -> str:
        return f"<answer>{problem.answer}</answer>"
