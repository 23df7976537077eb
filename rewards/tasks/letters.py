"""The quickstart's task: begin with a lower-case letter, which a random byte-level model does one time in ten."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from rewards.tasks.base import Generator
from rewards.types import Problem


@dataclass(frozen=True)
class Letters(Generator):
    """Begin the response with a lower-case letter (for models that can't do anything yet)."""

    base: ClassVar[str] = "letters"
    reward: ClassVar[str] = "letters"

    def draw(self, rng: random.Random) -> Problem:
        number = rng.randrange(10_000)
        return Problem(
            id="",
            task=self.base,
            prompt=f"Begin with a lower-case letter. {number}:",
            answer="a",
            key=str(number),
        )

    def gold(self, problem: Problem) -> str:
        return problem.answer
