"""Countdown, and search traces as an impatient human would write them: what the demo's base model is pre-trained on.
A chain in their notation is read back: attempts of sums `a op b = c`, each ended by `? target` and `!` for a hit, `.`
for a miss."""

import random
import re
from dataclasses import dataclass
from typing import NamedTuple

from rewards import table
from rewards.answer import CLOSE, OPEN, squeeze
from rewards.tasks.base import MAX_STEP, OPERATIONS, Generator, number, style
from rewards.types import Problem

_VERDICT = re.compile(r"\s*\d+\s*([.!])")
# a look-ahead, since a result may be the next sum's left number: `13 - 10 = 3 * 2 = 6`
_SUM = re.compile(r"(?<!\S)(?=(\d{1,9}) ([-+*]) (\d{1,9}) = (\d{1,9})(?!\S))", re.ASCII)
MAX_ATTEMPTS = 64  # of a trace; three numbers: up to 830 words, four: up to 1,200


@dataclass(frozen=True)
class Countdown(Generator):
    """Reach a target from given numbers with + - *, each number used exactly once (difficulty: how many numbers)."""

    base = reward = "countdown"
    numbers: tuple[int, int] = number((3, 5), (2, 6), "how many numbers, `3` or `3-5`")
    max_number: int = number(15, (3, 199), "numbers are 1 to this")
    max_target: int = number(99, (1, 199), "targets are 1 to this")
    style: str = style()

    def draw(self, rng: random.Random) -> Problem:
        count = rng.randint(*self.numbers)
        solved = None
        while solved is None or not 1 <= solved.value <= self.max_target:  # the count stays: none is favoured
            numbers = [rng.randint(1, self.max_number) for _ in range(count)]
            solved = combine(numbers, rng)
        words = f"{' '.join(map(str, numbers))} : {solved.value}"
        plain = table("prompts")["countdown"].format(numbers=", ".join(map(str, numbers)), target=solved.value)
        prompt = plain if self.style == "plain" else words
        key = f"{','.join(map(str, sorted(numbers)))}={solved.value}"
        meta = {"numbers": numbers, "target": solved.value}
        return Problem("", self.base, prompt, solved.expression, key, float(count), f"{count} numbers", meta=meta)


class Attempt(NamedTuple):
    """One combination of all numbers."""

    text: str  # e.g. "13 - 10 = 3 * 2 = 6"
    expression: str  # e.g. "( 13 - 10 ) * 2"
    value: int  # what its author believes


def combine(numbers: list[int], rng: random.Random, slip: float = 0.0) -> Attempt | None:
    """Join random pairs until one value is left; None where a step leaves 0..MAX_STEP.
    slip: probability that a step's result is wrong by a little."""
    pool = [(number, str(number)) for number in numbers]
    text, result = "", None
    while len(pool) > 1:
        left, right = (pool.pop(rng.randrange(len(pool))) for _ in range(2))
        operator = rng.choice("+-*")
        value = OPERATIONS[operator](left[0], right[0])
        if slip and rng.random() < slip:
            value += rng.choice((-2, -1, 1, 2))
        if not 0 <= value <= MAX_STEP:
            return None
        step = f"{operator} {right[0]} = {value}"
        goes_on = left is result  # "= 3 * 2 = 6" rather than "= 3 , 3 * 2 = 6"
        text += f" {step}" if goes_on else f"{' , ' if text else ''}{left[0]} {step}"
        expression = f"{left[1]} {operator} {right[1]}"
        result = (value, f"( {expression} )" if pool else expression)
        pool.append(result)
    return Attempt(text, pool[0][1], pool[0][0])


@dataclass(frozen=True)
class Habits:
    """Shares and probabilities of the authors."""

    direct: float = 0.2  # of the traces: answer at once, with a guess
    patient: float = 0.2  # of the traces: seldom give up
    give_up_patient: float = 0.02  # after a failed attempt
    give_up: float = 0.35  # the same, of everybody else
    slip: float = 0.02  # of the results: wrong by a little


def write_trace(problem: Problem, rng: random.Random, habits: Habits = Habits()) -> str:
    """Everything after a countdown prompt's `<think>`: attempts, `</think>`, answer; words apart by blanks.
    Random combinations until one hits or the author gives up; the answer repeats the last: deliberate weaknesses."""
    numbers, target = problem.meta["numbers"], problem.meta["target"]
    kind = rng.random()
    attempt = try_once(numbers, rng, habits.slip)
    if kind < habits.direct:
        return f"{CLOSE} {attempt.expression}"
    quits = habits.give_up_patient if kind < habits.direct + habits.patient else habits.give_up
    words: list[str] = []
    for _ in range(MAX_ATTEMPTS):
        hit = attempt.value == target
        # the target is written again behind each attempt: without it a model marks only one hit in seven
        words.append(f"{attempt.text} ? {target} {'!' if hit else '.'}")
        if hit or rng.random() < quits:
            break
        attempt = try_once(numbers, rng, habits.slip)
    return " ".join([*words, CLOSE, attempt.expression])


def try_once(numbers: list[int], rng: random.Random, slip: float = 0.0) -> Attempt:
    """A random combination of all numbers whose intermediate values are 0 to MAX_STEP."""
    while (attempt := combine(numbers, rng, slip)) is None:
        pass
    return attempt


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
