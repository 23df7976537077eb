"""A reward for Ponder: the model must write the reference answer backwards."""

from rewards.answer import final_answer
from rewards.types import Problem, Score


def reversed_answer(response: str, problem: Problem) -> Score:
    answer = final_answer(response)
    if answer is None:
        return Score(0.0, False, "unparsed", detail="no final answer")
    right = answer == problem.answer[::-1]
    return Score(float(right), right, "ok" if right else "wrong", detail=f"answered {answer[:80]!r}")
