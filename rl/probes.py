"""What a reward is tried on before it is trusted: gold answers, near misses, hostile responses."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

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


@dataclass
class Probe:
    """One kind of response, and the verdicts on all of that kind."""

    name: str
    must_accept: bool = False  # a gold answer that the reward has to like
    scores: list[Score] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def complaint(self) -> str:
        """What is wrong with the verdicts, empty where nothing is."""
        accepted = sum(score.correct for score in self.scores)
        if any(score.status == "error" for score in self.scores):
            return "no verdict"
        if self.name == GOLD:
            if any(score.status == "rejected" for score in self.scores):
                return "gold hits a limit"
            return "gold is not correct" if self.must_accept and accepted < len(self.scores) else ""
        return f"accepts {'a near miss' if self.name not in HOSTILE else 'no answer'}" if accepted else ""

    @property
    def detail(self) -> str:
        """The first reason that was given, of the verdict that is complained of where there is one."""
        blamed = [s for s in self.scores if s.correct == (self.name != GOLD)] if self.complaint else []
        return next((f"{s.id}: {s.detail}" for s in blamed + self.scores if s.detail), "")

    def row(self) -> tuple[str, ...]:
        """Name, statuses, scores from lowest to highest, longest time, verdict."""
        statuses = Counter(score.status for score in self.scores)
        several = len(self.scores) > 1
        values = sorted({score.value for score in self.scores if score.value is not None}) or [None]
        return (
            self.name, ", ".join(f"{n} {s}" if several else s for s, n in statuses.items()),
            " to ".join(map(str, values[:: max(1, len(values) - 1)])), f"{max(self.seconds):.3f}",
            self.complaint or "good",
        )  # fmt: skip


async def probe_reward(spec: Any, task: str | None, count: int, time_limit: float, workers: int) -> list[Probe]:
    """The verdicts of a reward on every kind of response, made of `count` problems of a task."""
    problems, must_accept = _problems(spec, task, count)
    probes: dict[str, Probe] = {}
    tries = [(name, problem, text) for name, problem, text in _responses(problems)]
    tries += [(name, problems[0][0], text) for name, text in HOSTILE.items()]
    async with RewardPool(workers, time_limit) as pool:
        await pool.load(spec)
        calls = (pool.timed(p.id, text, p, spec, extras=Extras([*range(len(text.split()))])) for _, p, text in tries)
        verdicts = [verdict async for verdict in in_order(calls)]
    for (name, _, _), (score, seconds) in zip(tries, verdicts, strict=True):
        probe = probes.setdefault(name, Probe(name, must_accept))
        probe.scores.append(score)
        probe.seconds.append(seconds)
    return list(probes.values())


def _problems(spec: Any, task: str | None, count: int) -> tuple[list[tuple[Problem, str]], bool]:
    """Problems with their gold responses, and whether the reward must accept these."""
    name = task or next((kind.base for kind in GENERATORS.values() if kind.reward == spec), None)
    if name is None:
        texts = {"What is 2 + 2?": "4", "What is 2 + 3?": "5"}
        made = [Problem(f"check {a}", "check", prompt, a, prompt) for prompt, a in texts.items()]
        return [(problem, f"\\boxed{{{problem.answer}}}") for problem in made], False
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
