from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.errors import BadInput
from rewards.form import format, length, overlong
from rewards.registry import judge, load_reward
from rewards.tasks import load_task
from rewards.tasks.citation import citation
from rewards.types import Extras, Problem, Score

PLAIN = Problem("q", "jsonl", "?", "4", "k")
DOCUMENTS = [
    "Lena Park was born in Oslo in 1931. She  built\nthe harbour. Her son was born in Bergen.",
    "Oslo is a town. Lena Park moved to Bergen in 1960.",
]


@pytest.mark.parametrize(
    ("response", "good"),
    [
        ("<think>2 + 2</think>4", True),
        ("  <think>\n2 + 2\n</think>\n\nIt is 4.\n", True),
        ("<think></think>4", True),
        ("4", False),
        ("", False),
        ("<think>2 + 2", False),
        ("<think>2 + 2</think>", False),
        ("<think>2 + 2</think> \n ", False),
        ("2 + 2</think>4", False),
        ("First: <think>2 + 2</think>4", False),
        ("<think>2</think>4<think>5</think>4", False),
        ("<think><think>2</think>4", False),
        ("<think>2</think></think>4", False),
        ("</think>4<think>", False),
        ("</think><think>4", False),
        ("<Think>2</Think>4", False),
        ("<think>" * 200_000, False),
        ("\0" * 1_000_000, False),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_format_is_one_thinking_block_and_an_answer(response: str, good: bool) -> None:
    score = format(response, PLAIN)
    assert (score.value, score.status) == ((1.0, "ok") if good else (0.0, "wrong"))
    assert not score.correct


# DAPO, equation 13, with L_max = 100 and L_cache = 20: 0 up to 80, (80 - n) / 20 up to 100, then -1.
@pytest.mark.parametrize(("tokens", "value"), [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (100, -1.0), (101, -1.0)])
def test_overlong_is_equation_13(tokens: int, value: float) -> None:
    score = overlong(100, 20)("", PLAIN, Extras(thinking_tokens=tokens))
    assert score == Score(value, False, "ok")


def test_overlong_without_a_cache_is_a_step() -> None:
    reward = overlong(100, 0)
    assert [reward("", PLAIN, Extras(thinking_tokens=n)).value for n in (100, 101)] == [0.0, -1.0]


@given(st.integers(1, 500), st.data())
def test_overlong_never_rises_with_length_and_is_trls(most: int, data: st.DataObject) -> None:
    cache = data.draw(st.integers(0, most))
    reward = overlong(most, cache)
    values = [reward("", PLAIN, Extras(thinking_tokens=n)).value or 0.0 for n in range(most + 3)]
    assert all(a >= b for a, b in pairwise(values))
    slow = [0.0 if n <= most - cache else (most - cache - n) / cache if n <= most else -1.0 for n in range(most + 3)]
    assert values == pytest.approx(slow)


@pytest.mark.parametrize("given_", [(0, 1), (10, 11), (10, -1), (10.0, 1), ("a response", PLAIN), (True, False)])
def test_overlong_refuses_what_makes_no_sense(given_: Any) -> None:
    with pytest.raises(BadInput, match="overlong takes"):
        overlong(*given_)


@pytest.mark.parametrize(("tokens", "value"), [(100, 1.0), (50, 0.5), (150, 0.5), (0, 0.0), (200, 0.0), (10**6, 0.0)])
def test_length_falls_by_the_relative_distance_from_the_target(tokens: int, value: float) -> None:
    problem = Problem("q", "jsonl", "?", "4", "k", meta={"target_tokens": 100})
    assert length("", problem, Extras(thinking_tokens=tokens)) == Score(value, False, "ok")


def test_the_count_comes_from_the_rollout_then_from_the_row_and_is_never_guessed() -> None:
    row = Problem("q", "jsonl", "?", "4", "k", meta={"target_tokens": 10, "thinking_tokens": 5})
    bare = Problem("q", "jsonl", "?", "4", "k", meta={"target_tokens": 10})
    assert length("x", row).value == 0.5
    assert length("x", row, Extras(thinking_tokens=10)).value == 1.0
    for reward in (length, overlong(10, 2)):
        score = judge(reward, "x", bare, extras=Extras(completion_ids=[1, 2]))
        assert (score.value, score.status) == (None, "skipped")
        assert "thinking_tokens" in score.detail


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"target_tokens": 0},
        {"target_tokens": "9"},
        {"target_tokens": True},
        {"target_tokens": 9, "thinking_tokens": -1},
        {"target_tokens": 9, "thinking_tokens": 1.5},
    ],
)
def test_length_names_the_field_that_makes_no_sense(meta: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=r"target_tokens|thinking_tokens"):
        length("", Problem("q", "jsonl", "?", "4", "k", meta={"thinking_tokens": 5} | meta))


def test_lengths_judge_a_chain_that_the_cap_cut() -> None:
    cut = Extras(thinking_tokens=100)
    assert judge(overlong(100, 20), "…", PLAIN, truncated=True, extras=cut) == Score(-1.0, False, "ok")
    assert judge(format, "<think>…", PLAIN, truncated=True).status == "truncated"


def about(answer: str = "1931", documents: Any = DOCUMENTS, **more: Any) -> Problem:
    return Problem("q", "jsonl", "?", answer, "k", meta={"documents": documents, **more})


EVIDENCE = "Lena Park was born in Oslo in 1931."


@pytest.mark.parametrize(
    ("response", "problem", "failed"),
    [
        (f'"{EVIDENCE}" [1] <answer>1931</answer>', about(), ""),
        (f"“{EVIDENCE}” [1]\n<answer>1931</answer>", about(), ""),
        (f'"{EVIDENCE}" <answer>1931</answer>', about(), ""),
        (f'<think>"no such text"</think>"{EVIDENCE}" \\boxed{{1931}}', about(), ""),
        ('"Lena Park\nwas born  in" [1] <answer>1931</answer>', about(), ""),  # stands for its only sentence
        ('"She built the harbour." [1] <answer>harbour</answer>', about("harbour"), ""),
        ('"was born in Bergen" [1] <answer>bergen</answer>', about("Bergen"), ""),
        ('"Bergen in 1960" [2] "Oslo in 1931" [1] <answer>1931</answer>', about(evidence=EVIDENCE), ""),
        ('"Oslo in 1931" [1] <answer>1931</answer>', about(evidence=["no", EVIDENCE]), ""),
        ('"Oslo in 1931" [a] <answer>1931</answer>', about(documents={"a": DOCUMENTS[0], "b": DOCUMENTS[1]}), ""),
        ('"Oslo in 1931" [1] <answer>"1931"</answer>', about(), ""),
        (f'"{EVIDENCE}" [1] <answer>1932</answer>', about(), "answer"),
        ("<answer>1931</answer>", about(), "verbatim supported"),
        (f"{EVIDENCE} [1] <answer>1931</answer>", about(), "verbatim supported"),
        (f'"{EVIDENCE}" [2] <answer>1931</answer>', about(), "verbatim supported"),
        (f'"{EVIDENCE}" [3] <answer>1931</answer>', about(), "verbatim supported"),
        ('"Lena Park was born in Bergen." [1] <answer>1931</answer>', about(), "verbatim supported"),
        ('"born in oslo in 1931" [1] <answer>1931</answer>', about(), "verbatim supported"),
        (f'"{EVIDENCE}" [1] "and more" <answer>1931</answer>', about(), "verbatim supported"),
        (f'"{EVIDENCE} <answer>1931</answer>', about(), "verbatim supported"),
        (f'"{EVIDENCE}" " <answer>1931</answer>', about(), "verbatim supported"),
        ('"" <answer>1931</answer>', about(), "verbatim supported"),
        ('" " [1] <answer>1931</answer>', about(), "verbatim supported"),
        ('"Her son was born" [1] <answer>1931</answer>', about(), "supported"),
        ('"was born in" <answer>1931</answer>', about(), "supported"),  # in two sentences: stands for itself
        ('"e" <answer>1931</answer>', about(), "supported"),
        ('"Oslo is a town." [2] <answer>Oslo</answer>', about("Oslo", evidence=EVIDENCE), "supported"),
        ('"Oslo in 1931" [1] <answer>93</answer>', about("93"), "supported"),  # a part of a number is none
        ('"1931" ' * 51 + "<answer>1931</answer>", about(), "verbatim supported"),
        ('"' * 1_000_000 + "<answer>1931</answer>", about(), "verbatim supported"),
        ("“" * 1_000_000 + "<answer>1931</answer>", about(), "verbatim supported"),
        ('"a" [' * 200_000 + "<answer>1931</answer>", about(), "verbatim supported"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_citation(response: str, problem: Problem, failed: str) -> None:
    start = time.process_time()
    score = citation(response, problem)
    assert " ".join(name for name, part in score.parts.items() if not part) == failed
    assert (score.value, score.correct, score.status) == ((0.0, False, "wrong") if failed else (1.0, True, "ok"))
    assert time.process_time() - start < 0.9


@pytest.mark.parametrize("response", ["", f'"{EVIDENCE}" [1]\nSo it must have been in that very year.', "<think>1931"])
def test_a_citation_needs_an_answer(response: str) -> None:
    score = citation(response, about())
    assert (score.value, score.correct, score.status) == (0.0, False, "unparsed")


@pytest.mark.parametrize("documents", [None, [], {}, "text", [1], {"a": None}])
def test_a_citation_needs_documents(documents: Any) -> None:
    with pytest.raises(BadInput, match="'documents' is not"):
        citation("1931", about(documents=documents))


@pytest.mark.parametrize("spec", ["citation", "citation?documents=1", "citation?documents=8"])
def test_the_citation_task_is_one(spec: str) -> None:
    task = load_task(spec)
    reward = load_reward(task.reward)
    other = task.problem(99, "train")
    for index in range(10):
        problem = task.problem(index, "train")
        gold, listed = task.gold(problem), problem.meta["documents"]
        assert citation(gold, problem).correct
        assert problem.meta["evidence"] in listed[problem.meta["cited"] - 1]
        assert all(text in problem.prompt for text in listed)
        assert all(3 <= text.count(".") <= 6 for text in listed)
        assert problem.difficulty == len(listed)
        assert not judge(reward, task.gold(other), problem).correct
        assert not judge(reward, f"<answer>{problem.answer}</answer>", problem).correct
        # another sentence of the same document, verbatim, supports nothing
        decoys = [s for s in listed[problem.meta["cited"] - 1].split(". ") if s not in problem.meta["evidence"]]
        assert not judge(reward, f'"{decoys[0]}" <answer>{problem.answer}</answer>', problem).correct
