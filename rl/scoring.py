"""How a run's chains are scored: timed, its failures named, a sample of the answers judged wrong heard again.
And what a reward is tried on: gold answers, near misses, hostile responses; the chains that a run has stored."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from rewards.answer import CLOSE, OPEN, as_text, final_answer
from rewards.errors import BadInput, Fault
from rewards.gold import SpecOf, first_problems, in_order
from rewards.math import SECOND, TAIL, auditable, chosen
from rewards.pool import RewardPool
from rewards.tasks import GENERATORS, load_task
from rewards.types import Extras, Problem, Score
from rl.build import Setup
from rl.metrics import Row
from rl.rundir import open_run
from rollout.collect import score_chain
from rollout.evaluate import wilson
from rollout.prompt import Template
from rollout.store import read
from rollout.types import Chain, Group

FAILED = ("error", "rejected")
AUDITS = 64  # a step on average, at most
COUNTS = ("checked", "disagreed", "wrong", "right")  # heard again; found right then; all judged wrong; right
Stored = tuple[int, Problem, Chain]  # with its step
SIDES = ("old", "new")
GOLD = "gold answer"
_PIECES = yaml.safe_load(Path(__file__).with_name("hostile.yaml").read_text())
HOSTILE = {kind: "".join(text * times for text, times in pieces.items()) for kind, pieces in _PIECES.items()}


class RunScorer:
    """A run's reward pool, timed; a second verifier hears some answers judged wrong, `path` takes what they dispute."""

    def __init__(self, pool: RewardPool, setup: Setup, path: Path) -> None:
        self.pool, self.setup, self.path = pool, setup, path
        self.active, self.since, self.seconds = 0, 0.0, 0.0  # of scoring at all; much overlaps sampling
        rollout = setup.config.rollout
        self.share = min(setup.config.rewards.audit_share, AUDITS / (rollout.problems * rollout.group_size))
        self.audits: dict[int, tuple[Counter[str], list[Row]]] = {}  # step -> counts, disagreements

    async def score(self, chain_id: str, response: str, problem: Problem, *args: Any, **kwargs: Any) -> Score:
        if self.active == 0:
            self.since = time.monotonic()
        self.active += 1
        try:
            score = await self.pool.score(chain_id, response, problem, *args, **kwargs)
            if not auditable(self.setup.spec_of(problem), problem):
                return score
            counts, rows = self.audits[int(score.id.partition("/")[0])]  # by step
            judged_wrong = score.status in ("wrong", "unparsed")
            counts["wrong" if judged_wrong else "right"] += judged_wrong or score.correct
            if judged_wrong and chosen(score.id, self.share):
                second = await self.pool.score(score.id, response, problem, SECOND)
                counts["checked"] += second.status in ("ok", "wrong")
                counts["disagreed"] += second.correct
                if second.correct:
                    row = {"id": score.id, "problem": problem.prompt, "reference": problem.answer}
                    row |= {"first": score.status, "first_detail": score.detail, "second": second.status}
                    rows.append(row | {"answer": final_answer(response), "response_end": response[-TAIL:]})
            return score
        finally:
            self.active -= 1
            if self.active == 0:
                self.seconds += time.monotonic() - self.since

    def begin(self, step: int) -> None:
        """Audit this step's chains from here on, and forget what was heard of it before its sampler died."""
        self.audits[step] = Counter(), []

    def figures(self, step: int, groups: Sequence[Group], say: Callable[[str], None]) -> Row:
        """What is recorded of a step's verdicts; disagreements go to the file. Raises what `check_rewards` raises."""
        row = check_rewards(groups, self.setup.spec_of, self.setup.config.rewards.max_error_share, say)
        counts, disagreements = self.audits.pop(step, (Counter(), []))
        if disagreements:
            disagreements.sort(key=lambda found: found["id"])
            with self.path.open("a") as file:
                file.writelines(json.dumps({"step": step} | found) + "\n" for found in disagreements)
        parts = getattr(self.setup.task, "parts", [self.setup.task])
        row["rewards/skipped_rows"] = sum(getattr(part, "skipped", 0) for part in parts)
        row["time/reward"], self.seconds = self.seconds, 0.0
        return row | {f"rewards/audit_{name}": value for name, value in audit_figures(counts).items()}


def audit_figures(counts: Counter[str]) -> dict[str, float]:
    """Counts, and the share of the right answers that the first verifier missed with its 95 % interval; {} for none."""
    checked, disagreed, wrong, right = (counts[name] for name in COUNTS)
    figures: dict[str, float] = {name: counts[name] for name in COUNTS}
    if checked:
        p = disagreed / checked
        for name, share in zip(("", "_low", "_high"), (p, *wilson(p, checked)), strict=True):
            missed = share * wrong  # the share's interval is Wilson's, put through p * wrong / (right + p * wrong)
            figures[f"false_negatives{name}"] = missed / (right + missed) if missed else 0.0
    return figures if wrong + right else {}


def check_rewards(groups: Sequence[Group], spec_of: SpecOf, bound: float, say: Callable[[str], None]) -> Row:
    """Metrics rewards/STATUS/NAME of rewards that failed, each said; Fault where over `bound` of the chains did so."""
    scores = [(g.problem, c.score) for g in groups for c in g.chains if c.score is not None]
    failures: dict[str, list[Score]] = {}
    for problem, score in scores:
        if score.status in FAILED:
            spec = spec_of(problem)
            failures.setdefault(spec if isinstance(spec, str) else json.dumps(spec), []).append(score)
    row, lines = Row(), []
    for name, failed in failures.items():
        counts = Counter(sorted(score.status for score in failed))
        row |= {f"rewards/{status}/{name}": n for status, n in counts.items()}
        said = ", ".join(f"{n} {status}" for status, n in counts.items())
        lines.append(f"reward {name} failed on {len(failed)} of {len(scores)} chains ({said}): {failed[0].detail}")
    if sum(map(len, failures.values())) > bound * len(scores):
        raise Fault(f"{'; '.join(lines)}; more than {bound:.0%} (rewards.max_error_share) stops a run")
    for line in lines:
        say(f"warning: {line}")
    return row


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
