from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.math import equal, math
from rewards.types import Problem

leaves = st.one_of(
    st.integers(-99, 99).map(str),
    st.sampled_from(["0.5", "1.25", "x", "y", "n", r"\pi", "e", r"\sqrt{2}", r"\frac{1}{3}", "7", "12"]),
)


def grow(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pair = st.tuples(children, children)
    return st.one_of(
        pair.map(lambda p: rf"\left({p[0]}+{p[1]}\right)"),
        pair.map(lambda p: f"({p[0]}-{p[1]})"),
        pair.map(lambda p: rf"({p[0]})\cdot({p[1]})"),
        pair.map(lambda p: rf"\frac{{{p[0]}}}{{{p[1]}}}"),
        st.tuples(children, st.integers(2, 3)).map(lambda p: f"({p[0]})^{{{p[1]}}}"),
        children.map(lambda c: rf"\sin({c})"),
    )


expressions = st.recursive(leaves, grow, max_leaves=6)
structures = st.one_of(
    expressions,
    st.lists(expressions, min_size=2, max_size=3).map(", ".join),
    st.tuples(expressions, expressions).map(lambda p: f"({p[0]}, {p[1]})"),
    expressions.map(lambda e: f"x = {e}"),
)


@given(structures)
@settings(max_examples=60, deadline=None)
def test_equality_is_reflexive(text: str) -> None:
    assert equal(text, text)


@given(structures, structures)
@settings(max_examples=100, deadline=None)
def test_equality_is_symmetric(a: str, b: str) -> None:
    assert equal(a, b) == equal(b, a)


@given(expressions, expressions)
@settings(max_examples=60, deadline=None)
def test_a_sum_commutes_and_a_changed_one_differs(a: str, b: str) -> None:
    if equal(f"({a})+({b})", f"({a})+({b})+0"):  # not where it divides by zero
        assert equal(f"({a})+({b})", f"({b})+({a})")
        assert not equal(f"({a})+({b})", f"({a})+({b})+1")


WAYS = {
    "whitespace": lambda text: re.sub(r"([-+(){}])", r" \1  ", text),
    "left right": lambda text: (
        text.replace(r"\left", "").replace(r"\right", "").replace("(", r"\left(").replace(")", r"\right)")
    ),
    "dfrac": lambda text: text.replace(r"\frac", r"\dfrac"),
    "dollars": lambda text: f"${text}$",
}


@pytest.mark.parametrize("way", WAYS)
@given(text=structures)
@settings(max_examples=40, deadline=None)
def test_spelling_does_not_matter(way: str, text: str) -> None:
    assert equal(text, WAYS[way](text))


@given(st.text(), st.sampled_from([r"\boxed{5}", "The answer is 4.", r"\boxed{4} or \boxed{5}", "5", ""]))
@settings(max_examples=60, deadline=None)
def test_text_in_the_thinking_block_never_changes_a_score(thought: str, answer: str) -> None:
    problem = Problem("q", "jsonl", "?", "5", "k")
    thought = thought.replace("<", "")
    assert math(f"<think>{thought}</think>{answer}", problem) == math(f"<think></think>{answer}", problem)


@given(st.one_of(st.text(max_size=60), st.binary(max_size=60).map(lambda b: b.decode("utf-8", "surrogateescape"))))
@settings(max_examples=150, deadline=None)
def test_arbitrary_text_never_raises(text: str) -> None:
    math(rf"\boxed{{{text}}}", Problem("q", "jsonl", "?", "5", "k"))
    assert not equal(r"\sqrt{2}", text)


PIECES = [
    *"0123456789xyi()[]{}|^_+-*/=<>,.!%&",
    *(rf"\{name} " for name in ("frac", "sqrt", "pm", "sin", "log", "cup", "pi", "{", "}", "le", "text{a}", "circ")),
]


@given(st.lists(st.sampled_from(PIECES), max_size=15).map("".join))
@settings(max_examples=150, deadline=None)
def test_broken_mathematics_never_raises(text: str) -> None:
    assert equal("x^2+1", text) in (True, False)
