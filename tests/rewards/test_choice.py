from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.choice import choice
from rewards.errors import BadInput
from rewards.types import Problem

CITIES = ["London", "Paris", "A dog", "New York, NY"]
VALUES = ["0.5", "1/2", "4", "$\\frac{1}{3}$", "1,000"]
LETTERS = ["B", "A", "Vitamin C", "E or F"]


def ask(answer: Any = "B", choices: Any = CITIES) -> Problem:
    return Problem("q", "jsonl", "?", answer, "k", meta={} if choices is None else {"choices": choices})


RIGHT = [
    "B",
    "b",
    "(B)",
    "(b)",
    "B.",
    "B)",
    "[B]",
    "**B**",
    "**(B)**",
    "$B$",
    "`B`",
    r"\boxed{B}",
    r"\boxed{(B)}",
    r"\boxed{\text{B}}",
    r"\boxed{\text{(B)}}",
    r"\boxed{\textbf{(B) }\text{Paris}}",
    r"\boxed{\text{B. Paris}}",
    r"$\boxed{\mathrm{B}}$",
    "<answer>B</answer>",
    "<answer>Answer: B</answer>",
    "<answer> B. Paris </answer>",
    "#### B",
    "Answer: B",
    "Answer: (B)",
    "Answer: B. Paris",
    "Answer: B) Paris",
    "**Answer: B**",
    "**Answer:** B",
    "Final answer: B",
    "The answer is B.",
    "The answer is (B).",
    "The answer is B. Paris.",
    "The answer is (B) Paris.",
    "The correct answer is B: Paris",
    "The answer is option B.",
    "The answer is Paris.",
    "The correct option is B.",
    "So the correct choice is (B).",
    "Option B",
    "B is correct",
    "B is the correct answer",
    "B. Paris",
    "B) Paris",
    "(B) Paris",
    "B: Paris",
    "B, Paris",
    "B - Paris",
    "B \N{EM DASH} Paris",
    "B Paris",
    "b) paris",
    "Paris",
    "paris",
    "  Paris.  ",
    "B. because it is the capital",
    "B because it is the capital",
    "London is in England.\nThe answer is B.",
    "<think>A? No: C!</think>B",
    "I first thought of \\boxed{A}. But that is in England. So it is \\boxed{B}.",
    "\\boxed{B} and again \\boxed{B}",
    "\\boxed{B} and \\boxed{(B)}",
    "The answer is B. A is wrong because London lies elsewhere.",
]

NOT_RIGHT = [
    "",
    "A",
    "C",
    "D",
    "E",
    "e",
    "Z",
    "London",
    "A dog",
    "a dog",
    "A. London",
    "B. London",
    "(B) London",
    "B: A dog",
    "B London",
    "Answer: B. London",
    "The answer is B. London.",
    r"\boxed{\text{B. London}}",
    "A. Paris",
    "A or B",
    "B or C",
    "A/B",
    "A, B",
    "B, C",
    "B and C",
    "both B and C",
    "Both (B) and (C)",
    "B (or C)",
    "B. Paris or C. A dog",
    "B, or maybe D",
    "AB",
    "BB",
    "A B",
    "ABCD",
    "A, B, C, D",
    r"\boxed{A}\boxed{B}",
    r"\boxed{A} or \boxed{B}",
    r"\boxed{A, B}",
    r"\boxed{B} or \boxed{Rome}",
    r"\boxed{B}, \boxed{Paris}, \boxed{London}",
    "<answer>A</answer><answer>B</answer>",
    "The answer is A or B.",
    "The answer is B, not A.",
    "not B",
    "neither A nor B",
    "Paris or London",
    "Paris, London",
    "Paris is a city",
    "None of the above",
    "All of the above",
    "A dog is what I would choose, and B is a letter, so this is prose that states no answer at all.",
    "It could be B, and it could be Paris, but nobody knows.",
    "<think>B",
    "<think>B</think>",
    "<think>B</think>A",
    "<think>A</think>B</think><think>",
    "\N{CYRILLIC CAPITAL LETTER VE}",
    "\N{FULLWIDTH LATIN CAPITAL LETTER B}",
    "B\0",
    "\0" * 1000,
    "2",
    "B" * 1_000_000,
    "B " * 500_000,
    "B, " * 500,
    "the " * 250_000,
    "answer is " * 100_000,
    "\\boxed{B}\\boxed{C}" * 20_000,
    "\\text{" * 200_000,
    "(" * 1_000_000,
    "<answer>" + "the answer is " * 140 + "</answer>",
    "<answer>" + "B " * 999 + "</answer>",
    "<answer>" + "\\text{" * 300 + "</answer>",
    "9**9**9",
    "nan",
    "__import__('os').system('true')",
]


@pytest.mark.parametrize("response", RIGHT)
def test_right(response: str) -> None:
    score = choice(response, ask())
    assert (score.value, score.correct, score.status) == (1.0, True, "ok")


@pytest.mark.parametrize("response", NOT_RIGHT, ids=lambda text: repr(text[:20]))
def test_not_right_and_decided_at_once(response: str) -> None:
    start = time.process_time()
    score = choice(response, ask())
    assert (score.value, score.correct) == (0.0, False)
    assert score.status in ("wrong", "unparsed")
    assert time.process_time() - start < 0.9


@pytest.mark.parametrize(
    ("response", "status"), [("A", "wrong"), ("A or B", "wrong"), ("B. London", "wrong"), ("E", "unparsed")]
)
def test_what_names_options_is_wrong_and_what_names_none_is_unparsed(response: str, status: str) -> None:
    assert choice(response, ask()).status == status


@pytest.mark.parametrize(
    ("response", "answer", "choices", "correct"),
    [
        ("4", "C", VALUES, True),
        ("4.0", "C", VALUES, True),
        ("C. 4", "C", VALUES, True),
        ("1000", "E", VALUES, True),
        (r"\boxed{\frac{1}{3}}", "D", VALUES, True),
        ("0.5", "A", VALUES, False),  # is the text of B, too
        ("A. 0.5", "A", VALUES, True),
        ("A. 4", "A", VALUES, False),
        ("A", "A", LETTERS, True),  # the letter, not the text of B
        ("A. B", "A", LETTERS, True),
        ("C. Vitamin C", "C", LETTERS, True),
        ("Vitamin C", "C", LETTERS, True),
        ("D. E or F", "D", LETTERS, True),
        ("A dog", "C", CITIES, True),
        ("C. A dog", "C", CITIES, True),
        ("D. New York, NY", "D", CITIES, True),
        ("b", "(B)", None, True),
        ("B. whatever it says", "B", None, True),
        ("Z", "z", None, True),
        ("A thing", "A", None, False),
        ("J", "J", [str(n) for n in range(10)], True),
        ("K", "J", [str(n) for n in range(10)], False),
        ("7", "B", [3, 7, None], True),
    ],
)
def test_other_options(response: str, answer: str, choices: Any, correct: bool) -> None:
    assert choice(response, ask(answer, choices)).correct is correct


@pytest.mark.parametrize(
    ("answer", "choices"),
    [("E", CITIES), ("Paris", CITIES), ("", CITIES), (1, CITIES), ("A", "London"), ("A", ["x"] * 27), ("1", None)],
)
def test_a_row_that_makes_no_sense_is_bad_input(answer: Any, choices: Any) -> None:
    with pytest.raises(BadInput, match="is no letter of its choices"):
        choice("B", ask(answer, choices))


@given(st.integers(0, 3), st.integers(0, 3), st.sampled_from(["{}", "({})", "Answer: {}", "\\boxed{{{}}}"]))
def test_one_letter_is_right_for_one_answer_alone(said: int, answer: int, form: str) -> None:
    assert choice(form.format("ABCD"[said]), ask("ABCD"[answer])).correct is (said == answer)


@given(st.text(alphabet="ABCD abcd().:,\\{}$*orand", max_size=30), st.sampled_from("ABCD"))
def test_no_text_is_right_for_two_answers(text: str, answer: str) -> None:
    right = [letter for letter in "ABCD" if choice(text, ask(letter)).correct]
    assert len(right) <= 1
