"""Chains side by side: which are picked, how they are read, what may not act on a page."""

from __future__ import annotations

import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.types import Problem, Score
from rl.report.chains import LONGEST, PICKS, pair_chains, pick_examples, printable, show_chain
from rollout.prompt import Template
from rollout.types import Chain, Group
from tests.models import byte_tokenizer

TEMPLATE = Template(byte_tokenizer(), think=True, stop_ids=[258])


def chain(text: str, correct: bool = True, judged: bool = True, inserted: int = 0) -> Chain:
    """A chain of a one-word prompt that opens the thinking; the last `inserted` tokens are not the model's."""
    prompt = TEMPLATE.encode("?")
    answer = [*TEMPLATE.tokenizer.encode(text, add_special_tokens=False), 258]
    ids = [*prompt, *answer]
    sampled = [t >= len(prompt) and t < len(ids) - inserted for t in range(len(ids))]
    score = Score(float(correct) if judged else None, correct, "ok" if correct else "wrong", detail="why")
    return Chain("c", "p", ids, len(prompt), sampled, [0.0] * len(ids), [(len(prompt), 0)], "stop", score)


def group(name: str, *chains: Chain) -> Group:
    return Group(Problem(name, "t", f"prompt of {name}", 1, name), list(chains))


def side(outcomes: dict[str, bool]) -> list[Group]:
    return [group(name, chain(f"x</think>{name}", correct)) for name, correct in outcomes.items()]


def test_problems_are_sorted_by_what_became_of_them() -> None:
    before = side({"a": False, "b": True, "c": False, "d": True, "only before": True})
    after = side({"d": False, "c": False, "b": True, "a": True, "only after": True})
    pairs = pair_chains(before, after)
    assert {outcome: [problem.id for problem, *_ in found] for outcome, found in pairs.items()} == {
        "gained": ["a"], "both right": ["b"], "both wrong": ["c"], "lost": ["d"],
    }  # fmt: skip


def test_the_first_judged_chain_speaks_for_a_problem() -> None:
    before = [group("a", chain("x</think>1", judged=False), chain("x</think>2", correct=False))]
    nobody = [group("a", chain("x</think>1", judged=False))]
    after = [group("a", chain("x</think>3"))]
    assert len(pair_chains(before, after)["gained"]) == 1
    assert not any(pair_chains(nobody, after).values())


def test_picks_are_few_the_same_each_time_and_spread_over_difficulty() -> None:
    names = [str(i) for i in range(30)]
    before, after = side(dict.fromkeys(names, False)), side(dict.fromkeys(names, True))
    before = [replace(g, problem=replace(g.problem, difficulty=i // 10)) for i, g in enumerate(before)]
    examples = pick_examples(pair_chains(before, after), TEMPLATE)
    assert [example.outcome for example in examples] == ["gained"] * PICKS["gained"]
    assert sorted(example.difficulty for example in examples) == [0, 1, 2]
    assert examples == pick_examples(pair_chains(before, after), TEMPLATE)
    assert examples[0].prompt == f"prompt of {examples[0].problem}"


@pytest.mark.parametrize(
    ("text", "thinking", "answer", "closed"),
    [
        ("a b</think>c", "a b", "c", True),
        ("</think>c", "", "c", True),
        ("a b", "a b", "", False),
        ("a</think>b</think>c", "a</think>b", "c", True),  # as the verifier reads it
    ],
)
def test_thinking_and_answer_are_told_apart(text: str, thinking: str, answer: str, closed: bool) -> None:
    shown = show_chain(chain(text), TEMPLATE)
    assert (shown.thinking, shown.answer, shown.closed) == (thinking, answer, closed)
    assert (shown.status, shown.value, shown.detail) == ("ok", 1.0, "why")


def test_a_model_without_thinking_only_answers() -> None:
    plain = Template(byte_tokenizer(), think=False, stop_ids=[258])
    prompt = plain.encode("?")
    ids = [*prompt, *plain.tokenizer.encode("b</think>c", add_special_tokens=False)]
    flags = [t >= len(prompt) for t in range(len(ids))]
    bare = Chain(
        "c", "p", ids, len(prompt), flags, [0.0] * len(ids), [(len(prompt), 0)], "length", Score(1.0, True, "ok")
    )
    shown = show_chain(bare, plain)
    assert (shown.thinking, shown.answer, shown.closed) == ("", "b</think>c", True)


def test_only_the_models_own_tokens_are_counted() -> None:
    shown = show_chain(chain("ab</think>c", inserted=2), TEMPLATE)
    assert (shown.tokens, shown.forced) == (3, True)  # a, b and the close


def test_the_middle_of_long_thinking_is_left_out() -> None:
    shown = show_chain(chain("a" * LONGEST + "b" * LONGEST + "</think>c"), TEMPLATE)
    assert shown.thinking.startswith("aaa")
    assert shown.thinking.endswith("bbb")
    assert f"{LONGEST:,} characters left out" in shown.thinking
    assert len(shown.thinking) < LONGEST + 100


def test_characters_that_would_act_are_written_out() -> None:
    assert printable("a\x07b\u202ec\ud800\n\td") == "a\\u0007b\\u202ec\\ud800\n\td"


@given(st.text())
def test_a_printable_text_can_be_written_and_turns_nothing_around(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert {unicodedata.category(c) for c in shown if c not in "\n\t"}.isdisjoint({"Cc", "Cf", "Cs"})
    assert printable(shown) == shown
