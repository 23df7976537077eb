"""What a countdown chain consists of, read off its text in the notation of search traces (countdown.py): attempts of
sums `a op b = c`, each ended by `? target` and `!` for a hit, `.` for a miss."""

import re
from typing import NamedTuple

from rewards.answer import CLOSE, OPEN, squeeze
from rewards.tasks.base import OPERATIONS
from rewards.types import Problem

_VERDICT = re.compile(r"\s*\d+\s*([.!])")
# a look-ahead, since a result may be the next sum's left number: `13 - 10 = 3 * 2 = 6`
_SUM = re.compile(r"(?<!\S)(?=(\d{1,9}) ([-+*]) (\d{1,9}) = (\d{1,9})(?!\S))", re.ASCII)


class Sum(NamedTuple):
    left: int
    operator: str
    right: int
    result: int


class Try(NamedTuple):
    sums: tuple[Sum, ...]
    claimed: bool  # whether its author took it for a hit


def chain_traits(problem: Problem, response: str) -> dict[str, float]:
    """Traits of one chain, by name; a mean over chains is a share or a number a chain. {} where the task can't tell.
    direct: 1 where it answered without thinking. attempts: how many. backtracks: failed attempts it went on from.
    repeated: share of the attempts that had been made before. slips: share of the sums that are false. gave_up: 1 where
    it closed its thinking behind an attempt it held for a miss."""
    if problem.task.partition("?")[0] != "countdown":
        return {}
    text, closed, _ = response.partition(CLOSE)
    thinking = text.strip().removeprefix(OPEN).strip()
    if not thinking:
        return {"direct": 1.0, "attempts": 0.0} if closed else {}
    tries = read_tries(thinking)
    if not tries:  # it thinks in other words
        return {"direct": 0.0}
    sums = [s for t in tries for s in t.sums]
    paths = {tuple((s.left, s.operator, s.right) for s in t.sums) for t in tries}  # whatever came out
    slips = sum(OPERATIONS[s.operator](s.left, s.right) != s.result for s in sums)
    return {
        "direct": 0.0,
        "attempts": float(len(tries)),
        "backtracks": float(sum(not t.claimed for t in tries[:-1])),
        "repeated": 1 - len(paths) / len(tries),
        "slips": slips / len(sums) if sums else 0.0,
        "gave_up": float(bool(closed) and not tries[-1].claimed),
    }


def read_tries(thinking: str) -> list[Try]:
    """The attempts that were brought to their end; one that was cut is left out."""
    text, *rest = thinking.split("?")
    tries = []
    for piece in rest:
        if (verdict := _VERDICT.match(piece)) is not None:
            found = _SUM.findall(squeeze(text))
            sums = tuple(Sum(int(left), operator, int(right), int(result)) for left, operator, right, result in found)
            tries.append(Try(sums, verdict[1] == "!"))
            piece = piece[verdict.end() :]
        text = piece
    return tries
