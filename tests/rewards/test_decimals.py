from __future__ import annotations

from fractions import Fraction

from rewards.answer import exact_match
from rewards.tasks.base import build
from rewards.tasks.simple import Decimals


def test_the_larger_decimal_is_right_and_the_other_is_not() -> None:
    task = build(Decimals, "decimals?places=1-4", 0, {"places": "1-4"})
    kinds = set()
    for index in range(60):
        problem = task.problem(index, "train")
        smaller, larger = problem.key.split(" < ")
        assert isinstance(problem.prompt, str)
        assert Fraction(smaller) < Fraction(larger)
        assert {smaller, larger} < set(problem.prompt.replace(",", "").replace("?", "").split())
        assert exact_match(task.gold(problem), problem).correct
        assert not exact_match(f"<answer>{smaller}</answer>", problem).correct
        kinds.add(problem.subtask)
    assert kinds == {"as many places", "the longer is larger", "the shorter is larger"}
