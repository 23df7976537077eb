"""Chains of the base and the trained model on the same problems, side by side and safe to show."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.answer import CLOSE, OPEN
from rewards.types import Problem
from rollout.prompt import Template
from rollout.types import Chain, Group

PICKS = {"gained": 3, "both right": 1, "both wrong": 2, "lost": 1}
"""What became of a problem -> how many of that kind are shown."""
LONGEST = 6000
"""Characters of one thinking block that are shown; the middle of a longer one is left out."""

Paired = tuple[Problem, Chain, Chain]


@dataclass(frozen=True)
class Side:
    """One chain as it is shown."""

    thinking: str
    answer: str
    closed: bool  # whether it came to an answer
    status: str
    correct: bool
    value: float | None
    detail: str  # the verifier's reason
    tokens: int
    forced: bool  # a budget closed the thinking


@dataclass(frozen=True)
class Example:
    """One problem with the chains of both models."""

    outcome: str  # a key of PICKS
    problem: str
    prompt: str
    difficulty: float
    sides: tuple[Side, Side]


def pair_chains(before: Sequence[Group], after: Sequence[Group]) -> dict[str, list[Paired]]:
    """Problems by what became of them: the first judged chain of each model on every problem that both have."""
    later = {group.problem.id: chain for group in after if (chain := _judged(group)) is not None}
    pairs: dict[str, list[Paired]] = {outcome: [] for outcome in PICKS}
    for group in before:
        first, last = _judged(group), later.get(group.problem.id)
        if first is not None and last is not None:
            pairs[_outcome(first, last)].append((group.problem, first, last))
    return pairs


def pick_examples(pairs: dict[str, list[Paired]], template: Template) -> list[Example]:
    """A few of each kind, spread evenly over difficulty and length; the same run gives the same ones."""
    return [
        Example(
            outcome,
            printable(problem.id),
            printable(_prompt_text(problem)),
            problem.difficulty,
            (show_chain(first, template), show_chain(last, template)),
        )
        for outcome, count in PICKS.items()
        for problem, first, last in _spread(pairs[outcome], count)
    ]


def show_chain(chain: Chain, template: Template) -> Side:
    """A scored chain as text. What models write is hostile: see `printable`; the page escapes the rest."""
    assert chain.score is not None, f"chain {chain.id} has no score"
    thinking, answer, closed = _split(template.response_text(chain), template.think)
    score = chain.score
    return Side(
        thinking=printable(_shorten(thinking)),
        answer=printable(_shorten(answer)),
        closed=closed,
        status=score.status,
        correct=score.correct,
        value=score.value,
        detail=printable(score.detail),
        tokens=chain.sampled_count,
        forced=chain.inserted_count > 0,
    )


def printable(text: str) -> str:
    """The text with control, direction and surrogate characters written as escapes: none may act on the page."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in {"Cc", "Cf", "Cs"} else _escape(c) for c in text)


def _split(text: str, think: bool) -> tuple[str, str, bool]:
    """(thinking, answer, whether there is an answer): where a model thinks, the last close divides them."""
    before, close, after = text.rpartition(CLOSE)
    if not think or not (close or OPEN in after):
        return "", text.strip(), True
    thinking, answer = (before, after) if close else (after, "")
    return thinking.replace(OPEN, "").strip(), answer.strip(), bool(close)


def _escape(character: str) -> str:
    return f"\\u{ord(character):04x}"


def _shorten(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]}\n\n… {len(text) - 2 * half:,} characters left out …\n\n{text[-half:]}"


def _prompt_text(problem: Problem) -> str:
    if isinstance(problem.prompt, str):
        return problem.prompt
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in problem.prompt)


def _spread(pairs: list[Paired], count: int) -> list[Paired]:
    ordered = sorted(pairs, key=lambda p: (p[0].difficulty, p[2].sampled_count, p[0].id))
    if len(ordered) <= count:
        return ordered
    return [ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count)]


def _judged(group: Group) -> Chain | None:
    return next((chain for chain in group.chains if chain.score is not None and chain.score.counts), None)


def _outcome(before: Chain, after: Chain) -> str:
    was, now = (chain.score is not None and chain.score.correct for chain in (before, after))
    if was == now:
        return "both right" if now else "both wrong"
    return "gained" if now else "lost"
