"""The quickstart's task: begin with a lower-case letter, which a random byte-level model does one time in ten."""

from __future__ import annotations

import random
from dataclasses import dataclass

from rewards.tasks.base import Generator
from rewards.types import Problem


@dataclass(frozen=True)
class Letters(Generator):
    """Begin the response with a lower-case letter (for models that can't do anything yet)."""

    base = "letters"
    reward = "letters"

    def draw(self, rng: random.Random) -> Problem:
        number = str(rng.randrange(10_000))
        return Problem("", self.base, f"Begin with a lower-case letter. {number}:", answer="a", key=number)
