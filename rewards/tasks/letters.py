"""The quickstart's task and its verifier: a random byte-level model is right one time in ten, a signal from step 1."""

import random
import string
from dataclasses import dataclass

from rewards.answer import OPEN
from rewards.tasks.base import Generator
from rewards.types import Problem


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
