import pytest
from ponder_plugin_example import reversed_answer

from rewards.types import Problem

PROBLEM = Problem("p", "words", "Write 'drawer' backwards.", "drawer", "drawer")


@pytest.mark.parametrize(
    ("response", "status"),
    [
        ("\\boxed{reward}", "ok"),
        ("<think>\nd, r, a ...\n</think>\nThe answer is reward.", "ok"),
        ("\\boxed{drawer}", "wrong"),
        ("<think>\nreward", "unparsed"),
        ("\\boxed{reward} \\boxed{drawer}", "unparsed"),
        ("", "unparsed"),
    ],
)
def test_statuses(response: str, status: str) -> None:
    score = reversed_answer(response, PROBLEM)
    assert score.status == status
    assert score.correct == (status == "ok")
