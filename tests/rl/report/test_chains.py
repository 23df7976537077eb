"""Chains side by side: which are picked, how they are read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rewards.types import Problem, Score
from rl.report.build import PICKS, pair_chains, pick_examples, read_side
from rollout.prompt import Template
from rollout.types import Chain, Group
from tests.models import byte_tokenizer

TEMPLATE = Template(byte_tokenizer(), think=True, stop_ids=[258])


def chain(text: str, correct: bool = True, judged: bool = True) -> Chain:
    """A chain of a one-word prompt that opens the thinking."""
    prompt = TEMPLATE.encode("?")
    answer = [*TEMPLATE.tokenizer.encode(text, add_special_tokens=False), 258]
    ids = [*prompt, *answer]
    sampled = [t >= len(prompt) for t in range(len(ids))]
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
    examples = pick_examples(pair_chains(before, after))
    assert [outcome for outcome, *_ in examples] == ["gained"] * PICKS["gained"]
    assert sorted(problem.difficulty for _, problem, *_ in examples) == [0, 1, 2]
    assert examples == pick_examples(pair_chains(before, after))


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("a b</think>c", "a b", "c"),
        ("</think>c", "", "c"),
        ("a</think>", "a", ""),
        ("a b", "a b", None),
        ("a</think>b</think>c", "a</think>b", "c"),  # as the verifier reads it
    ],
)
def test_thinking_and_answer_are_told_apart(text: str, thinking: str, answer: str | None) -> None:
    shown = read_side(chain(text), TEMPLATE)
    assert (shown["thinking"], shown["answer"]) == (thinking, answer)


def test_a_model_without_thinking_only_answers() -> None:
    plain = Template(byte_tokenizer(), think=False, stop_ids=[258])
    prompt = plain.encode("?")
    ids = [*prompt, *plain.tokenizer.encode("b</think>c", add_special_tokens=False)]
    flags = [t >= len(prompt) for t in range(len(ids))]
    bare = Chain(
        "c", "p", ids, len(prompt), flags, [0.0] * len(ids), [(len(prompt), 0)], "length", Score(1.0, True, "ok")
    )
    shown = read_side(bare, plain)
    assert (shown["thinking"], shown["answer"]) == ("", "b</think>c")
