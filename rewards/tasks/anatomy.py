"""What a countdown chain consists of: attempts, slips, repetitions. Read off its text, for the figures of a report.

It reads the notation of search traces (traces.py): attempts of sums `a op b = c`, each ended by `? target` and `!`
where its author sees a hit, `.` where not. A chain in other words tells only whether it thought at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rewards.tasks.traces import CLOSE, OPEN
from rewards.types import Problem

_VERDICT = re.compile(r"\s*\d+\s*([.!])")
_OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


@dataclass(frozen=True)
class Sum:
    """One line of arithmetic as it was written."""

    left: int
    operator: str
    right: int
    result: int

    @property
    def right_sum(self) -> bool:
        """Whether it is true."""
        return _OPERATIONS[self.operator](self.left, self.right) == self.result


@dataclass(frozen=True)
class Try:
    """One combination of numbers, and whether its author took it for a hit."""

    sums: tuple[Sum, ...]
    claimed: bool

    @property
    def path(self) -> tuple[tuple[int, str, int], ...]:
        """What was tried, whatever came out."""
        return tuple((s.left, s.operator, s.right) for s in self.sums)


def chain_traits(problem: Problem, response: str) -> dict[str, float]:
    """Traits of one chain, by name; a mean over chains is a share or a number a chain. {} where the task can't tell.

    direct: 1 where it answered without thinking. attempts: how many. backtracks: failed attempts it went on from.
    repeated: share of the attempts that had been made before. slips: share of the sums that are false. gave_up: 1 where
    it closed its thinking behind an attempt it held for a miss.
    """
    if problem.task.partition("?")[0] != "countdown":
        return {}
    text, closed, _ = response.partition(CLOSE)
    thinking = text.strip().removeprefix(OPEN).strip()
    if not thinking:
        return {"direct": 1.0, "attempts": 0.0} if closed else {}
    tries = read_tries(thinking)
    if not tries:  # it thinks in other words
        return {"direct": 0.0}
    return {"direct": 0.0, "attempts": float(len(tries))} | _of_tries(tries, bool(closed))


def read_tries(thinking: str) -> list[Try]:
    """The attempts that were brought to their end; one that was cut is left out."""
    text, *rest = thinking.split("?")
    tries = []
    for piece in rest:
        if (verdict := _VERDICT.match(piece)) is not None:
            tries.append(Try(_sums(text.split()), verdict[1] == "!"))
            piece = piece[verdict.end() :]
        text = piece
    return tries


def _of_tries(tries: list[Try], closed: bool) -> dict[str, float]:
    sums = [s for t in tries for s in t.sums]
    paths = [t.path for t in tries]
    return {
        "backtracks": float(sum(not t.claimed for t in tries[:-1])),
        "repeated": 1 - len(set(paths)) / len(paths),
        "slips": sum(not s.right_sum for s in sums) / len(sums) if sums else 0.0,
        "gave_up": float(closed and not tries[-1].claimed),
    }


def _sums(words: list[str]) -> tuple[Sum, ...]:
    """`13 - 10 = 3 * 2 = 6` and `10 - 2 = 8 , 13 - 8 = 5`: a result may be the next sum's left number."""
    found = []
    for left, operator, right, equals, result in zip(words, words[1:], words[2:], words[3:], words[4:], strict=False):
        numbers = (left, right, result)
        if operator in _OPERATIONS and equals == "=" and all(n.isascii() and n.isdigit() for n in numbers):
            found.append(Sum(int(left), operator, int(right), int(result)))
    return tuple(found)
