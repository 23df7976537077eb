"""What a reward is tried on: gold answers, near misses and hostile responses; the chains that a run has stored."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from rewards.answer import CLOSE, OPEN, as_text, final_answer
from rewards.errors import BadInput
from rewards.gold import first_problems, in_order
from rewards.pool import RewardPool
from rewards.tasks import GENERATORS, load_task
from rewards.types import Extras, Problem, Score
from rl.rundir import open_run
from rollout.collect import score_chain
from rollout.evaluate import wilson
from rollout.prompt import Template
from rollout.store import read
from rollout.types import Chain

Stored = tuple[int, Problem, Chain]  # with its step
SIDES = ("old", "new")
GOLD = "gold answer"
_PIECES = yaml.safe_load(Path(__file__).with_name("hostile.yaml").read_text())
HOSTILE = {kind: "".join(text * times for text, times in pieces.items()) for kind, pieces in _PIECES.items()}


async def probe_reward(pool: RewardPool, spec: Any, task: str | None, count: int) -> tuple[list[str], list[str]]:
    """A table with a line for each kind of response, made of `count` problems of a task; and what is wrong."""
    await pool.load(spec)
    name = task or next((kind.base for kind in GENERATORS.values() if kind.reward == spec), None)
    if name is None:  # nothing says what the reward is for, so it need not accept these
        sums = [Problem(f"2+{n}", "check", f"What is 2 + {n}?", str(2 + n), str(n)) for n in (2, 3)]
        problems = [(problem, f"\\boxed{{{problem.answer}}}") for problem in sums]
    else:
        source = load_task(name)
        problems = [(problem, source.gold(problem)) for problem in islice(first_problems(source, count), count)]
    tries = [*_responses(problems), *((kind, problems[0][0], text) for kind, text in HOSTILE.items())]
    calls = (pool.timed(p.id, text, p, spec, extras=Extras([*range(len(text.split()))])) for _, p, text in tries)
    found = [verdict async for verdict in in_order(calls)]
    line = "{:21}{:24}{:14}{:9}{}".format
    table, wrong = [line("response", "status", "score", "seconds", "verdict")], []
    for kind in dict.fromkeys(kind for kind, _, _ in tries):
        verdicts = [verdict for verdict, one in zip(found, tries, strict=True) if one[0] == kind]
        said = [(score, what) for score, _ in verdicts if (what := _complaint(kind, score, must_accept=bool(name)))]
        wrong += [f"{kind}: {what}: {score.id}: {score.detail or 'no reason'}" for score, what in said]
        statuses = ", ".join(f"{n} {status}" for status, n in Counter(s.status for s, _ in verdicts).items())
        values = {f"{score.value:g}" for score, _ in verdicts if score.value is not None}
        slowest = f"{max(seconds for _, seconds in verdicts):.3f}"
        table.append(line(kind, statuses, ", ".join(sorted(values)) or "none", slowest, said[0][1] if said else "good"))
    return table, wrong


def _complaint(kind: str, score: Score, must_accept: bool) -> str:
    if score.status == "error":
        return "no verdict"
    if kind != GOLD:
        return f"accepts {'no answer' if kind in HOSTILE else 'a near miss'}" if score.correct else ""
    refused = "gold is not correct" if must_accept and not score.correct else ""
    return "gold hits a limit" if score.status == "rejected" else refused


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
        for other in [text for p, text in problems if text != gold and p.answer != problem.answer][:1]:
            yield "another's gold", problem, other
            yield "gold or another's", problem, f"{gold} or {other}"


def stored_chains(path: Path, steps: str, limit: int | None) -> list[Stored]:
    """The judged chains of a run, of the steps `7` or `5-10` alone. Raises BadInput where there are none."""
    run, _ = open_run(path)
    first, dash, last = steps.partition("-")
    if steps and not (first.isdecimal() and (last.isdecimal() or not dash)):
        raise BadInput(f"--steps {steps!r} is neither a step nor a range; write 7 or 5-10")
    frames = read(run.samples) if run.samples.is_file() else []
    wanted = (frame for frame in frames if not steps or int(first) <= frame[0] <= int(last or first))
    found = ((step, g.problem, c) for step, groups in wanted for g in groups for c in g.chains if c.score is not None)
    chains = list(islice(found, limit))
    if not chains:
        raise BadInput(f"{path} holds no chains{f' of steps {steps}' if steps else ''}; see its {run.samples.name}")
    return chains


async def rescore(pool: RewardPool, path: Path, spec: Any, chains: Iterable[Stored]) -> dict[str, Any]:
    """A run's chains judged as it did, by another reward: figures of both sides, and the chains that changed."""
    await pool.load(spec)
    _, config = open_run(path)
    template = Template.load(config.model.path, think=config.model.think, system_prompt=config.model.system_prompt)

    async def one(step: int, problem: Problem, chain: Chain) -> dict[str, Any]:
        again = await score_chain(chain, problem, template=template, pool=pool, spec=spec, step=step)
        scores = {side: asdict(c.score) for side, c in zip(SIDES, (chain, again), strict=True) if c.score is not None}
        answer = final_answer(template.response_text(chain))
        return {"id": chain.id, "reference": problem.answer, "answer": answer} | scores

    rows = [row async for row in in_order(one(*stored) for stored in chains)]
    changed = [row for row in rows if row["old"]["correct"] != row["new"]["correct"]]
    same = 1 - len(changed) / len(rows)
    found = {"run": str(path), "reward": spec, "chains": len(rows)}
    for side in SIDES:
        values = [row[side]["value"] for row in rows if row[side]["value"] is not None]
        found[side] = {"mean": fmean(values) if values else None, "pass@1": fmean(row[side]["correct"] for row in rows)}
    moves = Counter(" -> ".join(row[side]["status"] for side in SIDES) for row in rows)
    agreement = {"share": same, "ci95": wilson(same, len(rows))}
    return found | {"agreement": agreement, "moves": dict(moves.most_common()), "changed": changed}
