from __future__ import annotations

import csv
import math as python_math
import time
from pathlib import Path
from typing import Any

import pytest

from rewards.math import equal, math
from rewards.types import Problem

PAIRS = Path(__file__).parents[2] / "benchmarks/data/math_pairs.tsv"
# What we judge otherwise than a person would: answers that neither we nor math-verify read, and two that both let pass.
MISSED = {
    ("3", r"3^{\text{rd}}"),
    ("18", "Age 18"),
    ("C(10,3)", "120"),
    (r"\{x \mid x > 3\}", r"(3,\infty)"),
    (r"(3,\infty)", r"\{x \mid x > 3\}"),
    ("(-\\infty,3]", r"x \le 3"),
    ("(-\\infty,3)", r"-\infty<x<3"),
    ("(1,2)", r"\begin{cases}x=1\\y=2\end{cases}"),
    (r"90^\circ", r"\frac{\pi}{2}"),
    (r"\ln(xy)", r"\ln x+\ln y"),
    (r"x<-2 \cup x>2", "x<-2 or x>2"),
    (r"(-\infty,-2)\cup(2,\infty)", "x<-2 or x>2"),
    ("4", "5=4"),
    ("4", "x^2=4"),
}


def pairs() -> list[Any]:
    with PAIRS.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [
        pytest.param(r["reference"], r["answer"], r["equal"] == "1", id=f"{r['reference']}|{r['answer']}") for r in rows
    ]


@pytest.mark.parametrize(("reference", "answer", "same"), pairs())
def test_the_table_of_pairs(reference: str, answer: str, same: bool) -> None:
    assert equal(reference, answer) == (same != ((reference, answer) in MISSED))


@pytest.mark.parametrize(
    ("reference", "answer", "same"),
    [
        ("11111", r"11,\! 111", True),
        ("11111", r"11,\!111", True),
        (r"1,\!234,\!567", "1234567", True),
        ("11, 111", r"11,\! 111", False),
        ("(1,2)", r"(1,\! 2)", True),
        ("4", "4_4", False),
        ("4_4", "4", False),
        ("17_8", "17_{8}", True),
        ("17_8", "17_9", False),
        ("17_8", "15", False),
        ("11", "11_2", False),
        ("11_2", "11", True),  # the question names the base
    ],
)
def test_thousands_with_a_thin_gap_and_numbers_in_a_base(reference: str, answer: str, same: bool) -> None:
    assert equal(reference, answer) is same


def ask(answer: Any, prompt: str = "?", **meta: Any) -> Problem:
    return Problem("q", "jsonl", prompt, answer, "k", meta=meta)


@pytest.mark.parametrize(
    ("response", "answer", "status"),
    [
        (r"<think>\boxed{4}</think>So \boxed{\frac{1}{2}}.", "0.5", "ok"),
        (r"<think>\boxed{0.5}", "0.5", "unparsed"),
        (r"\boxed{0.5}", 0.5, "ok"),
        (r"\boxed{1e-7}", 1e-7, "ok"),
        (r"\boxed{7}", 7, "ok"),
        (r"\boxed{7.0000001}", 7, "wrong"),
        ("The answer is $x = 5$.", "5", "ok"),
        ("The answer is 5 apples.", "5", "ok"),
        ("I counted them and there are 5.", "5", "unparsed"),
        ("I think there are 5", "5", "wrong"),
        (r"\boxed{3} or \boxed{5}", "3", "wrong"),
        (r"\boxed{3, 5}", "3", "wrong"),
        (r"\boxed{3 or 5}", "3", "wrong"),
        (r"\boxed{1, 2, 3}", "3", "wrong"),
        (r"x is \boxed{3} or \boxed{5}", "5, 3", "ok"),
        (r"\boxed{5, 3}", [3, 5], "ok"),
        (r"\boxed{x=3 \text{ or } x=5}", r"\{3, 5\}", "ok"),
        (r"It is \boxed{3}. No, I forgot one. It is \boxed{4}.", "4", "ok"),
        (r"It is \boxed{4}. No, I forgot one. It is \boxed{3}.", "4", "wrong"),
        (r"\boxed{}", "", "wrong"),
        ("".join(rf"\boxed{{{k}}} " for k in range(10_000)), "7", "wrong"),
        ("Yes.", r"\text{yes}", "ok"),
        (r"\[" + "\n5\n" + r"\]", "5", "ok"),
    ],
)  # fmt: skip
def test_responses(response: str, answer: Any, status: str) -> None:
    score = math(response, ask(answer))
    assert score.status == status
    assert score.value == (1.0 if status == "ok" else 0.0)
    assert score.correct == (status == "ok")


def test_a_thinking_block_that_the_prompt_opened_must_be_closed() -> None:
    opened = ask("5", prompt="Add 2 and 3.<think>\n")
    assert math(r"2 + 3, so \boxed{5}", opened).status == "unparsed"
    assert math(r"\boxed{4}</think>\boxed{5}", opened).correct


def test_tolerance_is_what_the_problem_states_and_never_on_an_integer() -> None:
    assert not equal("3.14", "3.15")
    assert math(r"\boxed{3.15}", ask("3.14", abs_tol=0.02)).correct
    assert math(r"\boxed{3.15}", ask("3.14", rel_tol=0.01)).correct
    assert not math(r"\boxed{3.17}", ask("3.14", abs_tol=0.02)).correct
    assert not math(r"\boxed{101}", ask("100", rel_tol=0.1)).correct


HOSTILE = [
    "9^{9^{9^{9}}}", "9**9**9**9", "10^{10^{10^{10}}}", "((((9!)!)!)!)!", "99999999!", "5" + "!" * 500, "(10^{100})!",
    "{" * 10_000 + "6" + "}" * 10_000, "(" * 480 + "6" + ")" * 480, "6" * 10**6, "x" * 10**6, "5\0", "\0" * 1000,
    "__import__('os').system('touch canary')", "eval('5')", "Symbol('x')", "lambda: 5", "nan", "NaN", r"\text{nan}",
    "inf", r"\infty", "-inf", r"\infty-\infty", r"\frac{0}{0}", "1/0", "0^{-1}", "1e999999999", r"\sin(10^{900})",
    "e^{e^{e^{e^{10}}}}", r"\exp(\exp(\exp(1000)))", "(1+x)^{9999999}", "(x+1)^{300}(y+2)^{300}", "|" * 500, "5," * 400,
    r"\sqrt{" * 100 + "2" + "}" * 100, r"\pm 5" * 150, "2^{0.5^{0.5^{0.5}}}" * 20, "1.1^{" + "9" * 20 + "}", r"\ln 0",
    r"\log_{1}{5}", "\ud800", r"\prod_{k=1}^{99999999} k", r"\binom{99999999}{5000000}", "9" * 300 + "^" + "9" * 300,
    r"\frac{" * 99, "x_{" * 200, "+".join(rf"\sqrt{{{k}}}" for k in range(99)), r"5 \mod 7", r"5 \or not", "5 or not",
    "x^{x^{x^{x}}}", "[" * 300,
]  # fmt: skip


@pytest.mark.parametrize("reference", ["5", r"\sqrt{2}", "x^2+1", "1, 2"])
@pytest.mark.parametrize("answer", HOSTILE, ids=lambda text: repr(text[:20]))
def test_hostile_answers_are_wrong_at_once(answer: str, reference: str) -> None:
    equal("x", "y")
    start = time.process_time()
    assert not equal(reference, answer)
    assert not math(rf"\boxed{{{answer}}}", ask(reference)).correct
    assert time.process_time() - start < 3.0


def test_huge_numbers_are_compared_exactly() -> None:
    assert equal("2^{300}", str(2**300))
    assert not equal("2^{300}", str(2**300 + 1))
    assert equal("30!", str(python_math.factorial(30)))
    assert not equal(r"\frac{1}{2004!}", r"\frac{1}{2006!}")
