"""Small tasks: chained arithmetic; which of two decimals is larger, 9.11 or 9.8; and the quickstart's letters, where a
random byte-level model is right one time in ten, a signal from step 1, with their verifier."""

import random
import string
from dataclasses import dataclass
from fractions import Fraction

from rewards import table
from rewards.answer import OPEN
from rewards.tasks.base import MAX_STEP, OPERATIONS, Generator, number, style
from rewards.types import Problem

VERBS = {"+": "add", "-": "subtract", "*": "multiply by"}


@dataclass(frozen=True)
class Arithmetic(Generator):
    """Work out a chain of + - * from the inside out (difficulty: how many operations)."""

    base = "arithmetic"
    reward = "exact_match"
    operations: tuple[int, int] = number((1, 6), (1, 12), "how many operations, `2` or `1-6`")
    max_number: int = number(15, (3, 199), "numbers are 1 to this")
    style: str = style()

    def draw(self, rng: random.Random) -> Problem:
        count = rng.randint(*self.operations)
        start = value = rng.randint(1, self.max_number)
        steps: list[tuple[str, int]] = []
        while len(steps) < count:
            step = rng.choice("+-*"), rng.randint(1, self.max_number)
            reached = OPERATIONS[step[0]](value, step[1])
            if 0 <= reached <= MAX_STEP:  # + or - by a small number is always possible, so this ends
                value = reached
                steps.append(step)
        words = str(start)
        for k, (operator, operand) in enumerate(steps):
            words = f"( {words} ) {operator} {operand}" if k else f"{words} {operator} {operand}"
        chain = ", ".join(f"{VERBS[operator]} {n}" for operator, n in steps)
        plain = table("prompts")["arithmetic"].format(start=start, chain=chain)
        prompt = plain if self.style == "plain" else f"{words} ="
        key = str(start) + "".join(f"{operator}{n}" for operator, n in steps)
        subtask = f"{count} operation{'s' if count > 1 else ''}"
        return Problem("", self.base, prompt, str(value), key, float(count), subtask)


@dataclass(frozen=True)
class Decimals(Generator):
    """Say which of two decimals with the same whole part is larger (difficulty: how many places)."""

    base = "decimals"
    reward = "exact_match"
    style = "plain"  # gold answers stand in tags
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
        prompt = table("prompts")["decimals"].format(*pair)
        subtask = ("as many places", "the longer is larger", "the shorter is larger")[order]
        return Problem("", self.base, prompt, larger, f"{smaller} < {larger}", float(places), subtask)


@dataclass(frozen=True)
class Letters(Generator):
    """Begin the response with a lower-case letter (for models that can't do anything yet)."""

    base = reward = "letters"

    def draw(self, rng: random.Random) -> Problem:
        number = str(rng.randrange(10_000))
        return Problem("", self.base, f"Begin with a lower-case letter. {number}:", answer="a", key=number)


def letters(response: str, problem: Problem) -> bool:
    """Whether the first character that the model chose is a lower-case ASCII letter."""
    return response.removeprefix(OPEN)[:1] in set(string.ascii_lowercase)


letters.scores_truncated = True  # type: ignore[attr-defined]  # a random chain never ends by itself
