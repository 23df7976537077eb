"""What a reward is tried on before it is trusted: gold answers, near misses, hostile responses."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

from rewards.answer import CLOSE, OPEN
from rewards.equality import as_text
from rewards.gold import first_problems, in_order
from rewards.pool import RewardPool
from rewards.tasks import GENERATORS, load_task
from rewards.types import Extras, Problem, Score

GOLD = "gold answer"
HOSTILE = {
    "empty": "",
    "blanks": " \n\t",
    "unclosed thinking": OPEN + "Hm. " * 100,
    "a megabyte": "X" * 2**20,
    "10,000 brackets": "\\boxed{" + "(" * 10_000 + ")" * 10_000 + "}",
    "power tower": "\\boxed{9**9**9**9}",
    "factorial tower": "\\boxed{9!!!!}",
    "code": "<answer>__import__('os').system('true')</answer>",
    "NUL bytes": "\0" * 1000,
    "not a number": "\\boxed{nan}",
    "many answers": "\\boxed{1} \\boxed{2} \\boxed{3}",
}


class Probe(NamedTuple):
    """One response of a kind, and the verdict on it."""

    kind: str
    score: Score
    seconds: float
    complaint: str  # what is wrong with the verdict, empty where nothing is


async def probe_reward(spec: Any, task: str | None, count: int, time_limit: float, workers: int) -> list[list[Probe]]:
    """The verdicts of a reward by kind of response; these are made of `count` problems of a task."""
    problems, must_accept = _problems(spec, task, count)
    tries = [*_responses(problems), *((kind, problems[0][0], text) for kind, text in HOSTILE.items())]
    async with RewardPool(workers, time_limit) as pool:
        await pool.load(spec)
        calls = (pool.timed(p.id, text, p, spec, extras=Extras([*range(len(text.split()))])) for _, p, text in tries)
        verdicts = [verdict async for verdict in in_order(calls)]
    kinds: dict[str, list[Probe]] = {}
    for (kind, _, _), (score, seconds) in zip(tries, verdicts, strict=True):
        kinds.setdefault(kind, []).append(Probe(kind, score, seconds, _complaint(kind, score, must_accept)))
    return list(kinds.values())


def describe(probes: list[Probe]) -> tuple[str, ...]:
    """One kind of response in words: its name, statuses, lowest and highest score, longest time, complaint."""
    statuses = Counter(probe.score.status for probe in probes)
    values = sorted({probe.score.value for probe in probes if probe.score.value is not None})
    return (
        probes[0].kind,
        ", ".join(f"{n} {status}" if len(probes) > 1 else status for status, n in statuses.items()),
        " to ".join(f"{value:g}" for value in dict.fromkeys([*values[:1], *values[-1:]])) or "none",
        f"{max(probe.seconds for probe in probes):.3f}",
        next((probe.complaint for probe in probes if probe.complaint), "good"),
    )


def _complaint(kind: str, score: Score, must_accept: bool) -> str:
    if score.status == "error":
        return "no verdict"
    if kind != GOLD:
        return f"accepts {'no answer' if kind in HOSTILE else 'a near miss'}" if score.correct else ""
    if score.status == "rejected":
        return "gold hits a limit"
    return "gold is not correct" if must_accept and not score.correct else ""


def _problems(spec: Any, task: str | None, count: int) -> tuple[list[tuple[Problem, str]], bool]:
    """Problems with their gold responses, and whether the reward must accept these."""
    name = task or next((kind.base for kind in GENERATORS.values() if kind.reward == spec), None)
    if name is None:
        sums = [Problem(f"2+{n}", "check", f"What is 2 + {n}?", str(2 + n), str(n)) for n in (2, 3)]
        return [(problem, f"\\boxed{{{problem.answer}}}") for problem in sums], False
    source = load_task(name)
    return [(problem, source.gold(problem)) for problem in islice(first_problems(source, count), count)], True


def _responses(problems: list[tuple[Problem, str]]) -> Iterator[tuple[str, Problem, str]]:
    """(kind, problem, response): the gold answer, and what is close to it without being an answer, or right."""
    for problem, gold in problems:
        answer = as_text(problem.answer)
        yield GOLD, problem, gold
        yield "gold while thinking", problem, f"{OPEN}Hm. {gold}"
        if len(answer) < 20:
            yield "gold in prose", problem, f"{CLOSE}I am not sure, it may be {answer} or it may not be that."
        if answer in gold and (number := re.search(r"\d{1,15}", answer)):
            changed = f"{answer[: number.start()]}{int(number[0]) + 1}{answer[number.end() :]}"
            yield "another number", problem, changed.join(gold.rsplit(answer, 1))
        others = [text for other, text in problems if text != gold and other.answer != problem.answer]
        for other in others[:1]:
            yield "another's gold", problem, other
            yield "gold or another's", problem, f"{gold} or {other}"
