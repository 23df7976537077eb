"""Plain equality of the final answer: exact rationals where both sides are numbers, else the same text."""

import json
import re
from fractions import Fraction
from typing import Any

from rewards.answer import final_answer, squeeze, with_open_tag
from rewards.types import Problem, Score

MAX_NUMBER = 100  # characters that are read as a number: bounds the cost of exact arithmetic
_NUMBER = re.compile(
    r"[+-]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{1,3})?|[+-]?\d+\s*/\s*\d+", re.ASCII
)


def exact_match(response: str, problem: Problem) -> Score:
    """Whether the final answer equals `problem.answer`: 0.50 equals 1/2, blanks don't matter, case does."""
    answer = final_answer(with_open_tag(response, problem.prompt))
    if answer is None:
        return Score(0.0, False, "unparsed", detail="no final answer")
    right = same(answer, as_text(problem.answer))
    return Score(1.0, True, "ok") if right else Score(0.0, False, "wrong", detail=f"answered {answer[:80]!r}")


def as_text(answer: Any) -> str:
    """The text a response must state for a reference answer of any JSON type."""
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)


def same(a: str, b: str) -> bool:
    """Equal as exact numbers, or as text with blanks squeezed."""
    left, right = number(a), number(b)
    return squeeze(a) == squeeze(b) if left is None or right is None else left == right


def number(text: str) -> Fraction | None:
    """An integer, decimal or fraction in ASCII digits as an exact rational; None for anything else."""
    text = text.strip()
    try:
        read = len(text) <= MAX_NUMBER and _NUMBER.fullmatch(text)
        return Fraction(text.replace(",", "").replace(" ", "")) if read else None
    except (ValueError, ZeroDivisionError):  # 1/0, or blanks that Fraction does not know
        return None
