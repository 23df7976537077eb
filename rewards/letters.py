"""The easiest reward there is: a random model already earns it one time in ten, so RL has a signal from step 1."""

from __future__ import annotations

import string

from rewards.answer import OPEN
from rewards.types import Problem


def letters(response: str, problem: Problem) -> bool:
    """Whether the first character that the model chose is a lower-case ASCII letter."""
    return response.removeprefix(OPEN)[:1] in set(string.ascii_lowercase)


letters.scores_truncated = True  # type: ignore[attr-defined]  # a random chain never ends by itself
