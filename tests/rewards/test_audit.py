from __future__ import annotations

from typing import Any

import pytest

from rewards.math import auditable, chosen, second_opinion
from rewards.types import Problem


def problem(answer: Any, **meta: Any) -> Problem:
    return Problem("p", "t", "?", answer, "k", meta=meta)


@pytest.mark.parametrize(
    ("answer", "response", "right"),
    [
        ("1/2", "\\boxed{\\frac{1}{2}}", True),
        ("\\frac{1}{2}", "so the answer is $0.5$", True),
        ("42", "<think>\n41\n</think>\n**Answer:** 42 apples", True),
        ("42", "<think>\n42\n</think>\n\\boxed{41}", False),
        (42, "\\boxed{42}", True),
        ("x^2+1", "\\boxed{1+x^2}", True),
        ("Paris", "The capital is Paris.", True),
        ("Paris", "\\boxed{\\text{paris}}", True),
        ("Paris", "Answer: **Paris**", True),
        ("listen", "\\boxed{silent}", False),  # math-verify alone takes words for products of letters
        ("Paris", "It is not Paris.", False),
        ("Paris", "", False),
        ("42", "", False),
    ],
)
def test_second_opinions(answer: Any, response: str, right: bool) -> None:
    assert second_opinion(response, problem(answer)) is right


def test_a_reference_that_cannot_be_read_gives_no_opinion() -> None:
    assert second_opinion("\\boxed{1}", problem("= ^")) is None


def test_only_the_end_of_a_long_response_is_read() -> None:
    assert second_opinion("\\boxed{42} " + "x " * 10_000, problem("42")) is False


@pytest.mark.parametrize(
    ("spec", "asked", "expected"),
    [
        ("exact_match", problem("4"), True),
        ("math", problem(4), True),
        ("numeric", problem(4.5), True),
        ("numeric", problem(4.5, unit="m"), False),
        ("math", problem([4]), False),
        ("math", problem(True), False),
        ("countdown", problem("1 + 3"), False),
        ({"use": "math"}, problem("4"), False),
        (None, problem("4"), False),
    ],
)
def test_what_can_be_audited(spec: Any, asked: Problem, expected: bool) -> None:
    assert auditable(spec, asked) is expected


def test_the_sample_is_a_share_that_a_hash_decides() -> None:
    ids = [f"{step}/p/{k}" for step in range(100) for k in range(100)]
    for share in (0.0, 0.05, 0.5, 1.0):
        count = sum(chosen(id, share) for id in ids)
        assert abs(count - share * len(ids)) <= 4 * (len(ids) * share * (1 - share)) ** 0.5
    small = {id for id in ids if chosen(id, 0.05)}
    assert small == {id for id in ids if chosen(id, 0.05)}
    assert small <= {id for id in ids if chosen(id, 0.5)}
