from __future__ import annotations

import contextlib
import time
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.answer import exact_match, number, same
from rewards.countdown import NotAnExpression, countdown, evaluate, tokenise
from rewards.tasks.simple import letters
from rewards.types import Problem

GAME = Problem("g", "countdown", "2 13 10 : 5", "13 - ( 10 - 2 )", "k", meta={"numbers": [2, 13, 10], "target": 5})


def ask(answer: Any) -> Problem:
    return Problem("q", "jsonl", "?", answer, "k")


@pytest.mark.parametrize(
    "response",
    [
        "13 - ( 10 - 2 )",
        "13-10+2",
        "<think>9 + 9 = 18 ? 5 .</think> 13 - ( 10 - 2 )",
        r"\boxed{2 + (13 - 10)}",
        "<answer>2-(10-13)</answer>",
        "13 - 10 + 2 = 5",
        "-10 + 13 + 2",
        "13 - ((10 - (2)))",
        "13 - ( 10 - 2 ).",
    ],
)
def test_countdown_accepts_every_valid_expression(response: str) -> None:
    assert countdown(response, GAME).correct


@pytest.mark.parametrize(
    ("response", "status"),
    [
        ("13 - 10", "wrong"),  # a number is left
        ("13 - 10 + 2 - 2 + 2", "wrong"),  # used twice
        ("13 - 10 - 2", "wrong"),  # another value
        ("5", "wrong"),
        ("15 - 10", "wrong"),  # numbers that are not there
        ("13 - ( 10 - 2 ) = 6", "wrong"),
        ("13 - ( 10 - 2 ) = 5 = 5", "wrong"),
        ("13 / ( 2 - 2 ) + 10", "wrong"),
        ("", "unparsed"),
        ("<think>13 - ( 10 - 2 )", "unparsed"),
        ("13 - ( 10 - 2", "unparsed"),
        ("13 - 10 - 2 )", "unparsed"),
        ("13 - ( 10 - 2 ) )", "unparsed"),
        ("( ) 13 - 10 + 2", "unparsed"),
        ("13 10 - 2 +", "unparsed"),
        ("013 - ( 10 - 2 )", "unparsed"),
        ("1 3 - ( 10 - 2 )", "unparsed"),
        ("13.0 - ( 10 - 2 )", "unparsed"),
        ("13 - ( 10 - 2 ) # 5", "unparsed"),
        ("13 - ( 1e1 - 2 )", "unparsed"),
        ("13 - ( 10 - \N{FULLWIDTH DIGIT TWO} )", "unparsed"),
        ("13 - ( 10 - \N{ARABIC-INDIC DIGIT TWO} )", "unparsed"),
        ("13 - 10 + 2\0", "unparsed"),
        ("9**9**9", "unparsed"),
        ("__import__('os').system('true')", "unparsed"),
    ],
)
def test_countdown_rejects(response: str, status: str) -> None:
    score = countdown(response, GAME)
    assert (score.value, score.correct, score.status) == (0.0, False, status)
    assert score.detail


def test_countdown_is_exact_with_fractions() -> None:
    # 8 / (3 - 8/3) = 24: floats give 23.99…
    game = Problem("g", "countdown", "", "", "k", meta={"numbers": [8, 3, 8, 3], "target": 24})
    assert countdown("8 / ( 3 - 8 / 3 )", game).correct


def test_countdown_needs_numbers_and_target() -> None:
    with pytest.raises(KeyError):
        countdown("1", ask("1"))


TREES = st.recursive(
    st.integers(0, 99).map(str),
    lambda child: st.tuples(child, st.sampled_from("+-*/"), child).map(lambda t: f"( {t[0]} {t[1]} {t[2]} )"),
    max_leaves=6,
)


@given(TREES)
def test_evaluate_agrees_with_python_on_fractions(text: str) -> None:
    python = "".join(f"Fraction({word})" if word.isdigit() else word for word in text.split())
    try:
        expected = eval(python, {"Fraction": Fraction})  # of our own making
    except ZeroDivisionError:
        with pytest.raises(ZeroDivisionError):
            evaluate(tokenise(text))
        return
    assert evaluate(tokenise(text)) == expected


@given(st.text(alphabet="0123456789+-*/() ", max_size=40))
def test_any_text_of_the_alphabet_has_a_value_or_a_reason(text: str) -> None:
    with contextlib.suppress(NotAnExpression, ZeroDivisionError):
        assert isinstance(evaluate(tokenise(text)), Fraction)


HOSTILE = {
    "a megabyte": "1+" * 500_000,
    "10,000 brackets": "(" * 10_000 + "5" + ")" * 10_000,
    "100 brackets": "(" * 100 + "5" + ")" * 100,
    "100 minus signs": "-" * 100 + "5",
    "NUL": "\0" * 1000,
    "power tower": "9**9**9**9",
    "factorial": "9!!!!",
    "unicode digits": "\N{ARABIC-INDIC DIGIT FIVE}",
    "infinity": "inf",
    "NaN": "nan",
    "boxes": r"\boxed{1}\boxed{5}" * 1000,
    "huge number": "9" * 100_000,
    "huge exponent": "1e999999999",
    "digit separators": "5_0",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_responses_are_never_right_and_never_slow(text: str) -> None:
    start = time.process_time()
    assert not countdown(text, GAME).correct
    assert not countdown(f"<answer>{text}</answer>", GAME).correct
    assert not exact_match(text, ask("5")).correct
    assert not exact_match(f"<answer>{text}</answer>", ask(50)).correct
    assert time.process_time() - start < 3.0


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("4", "4"),
        ("4", 4),
        ("0.50", "1/2"),
        ("0.1", 0.1),
        ("1,000", 1000),
        ("+7", 7),
        ("-3 / 6", "-0.5"),
        ("1e3", "1000"),
        (".5", 0.5),
        ("new   York", "new York"),
        ("true", True),
        ("[1, 2]", [1, 2]),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("<think>3</think>4", "4"),
    ],
)
def test_exact_match_accepts(response: str, answer: Any) -> None:
    assert exact_match(response, ask(answer)).correct


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("5", "4"),
        ("0.3333", "1/3"),
        ("4 or 5", "4"),
        ("New York", "new york"),
        ("1,00", "100"),
        ("1/0", "1"),
        ("4 apples", "4"),
        ("1e-7", "2e-7"),
        ("\N{ARABIC-INDIC DIGIT FOUR}", "4"),
    ],
)
def test_exact_match_rejects(response: str, answer: Any) -> None:
    score = exact_match(response, ask(answer))
    assert (score.value, score.correct, score.status) == (0.0, False, "wrong")


def test_exact_match_without_an_answer_is_unparsed() -> None:
    assert exact_match("<think>4", ask("4")).status == "unparsed"


@given(st.fractions(), st.fractions())
def test_same_is_equality_of_rationals(a: Fraction, b: Fraction) -> None:
    if len(str(a)) <= 100 and len(str(b)) <= 100:
        assert number(str(a)) == a
        assert same(str(a), str(b)) == (a == b) == same(str(b), str(a))


@pytest.mark.parametrize(
    ("response", "right"),
    [("abc", True), ("<think>q", True), ("Abc", False), (" a", False), ("", False), ("é", False), ("7", False)],
)
def test_letters(response: str, right: bool) -> None:
    assert letters(response, ask("a")) is right


def test_letters_judges_cut_chains() -> None:
    assert letters.scores_truncated is True  # type: ignore[attr-defined]
