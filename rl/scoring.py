"""How a run's chains are scored: timed, its failures named, a sample of the answers judged wrong heard again."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rewards.answer import final_answer
from rewards.audit import SECOND, TAIL, auditable, chosen
from rewards.errors import Fault
from rewards.pool import RewardPool
from rewards.types import Extras, Problem, Score
from rl.metrics import Row
from rollout.evaluate import wilson
from rollout.types import Group

FAILED = ("error", "rejected")
AUDITS = 64  # a step on average, at most
COUNTS = ("checked", "disagreed", "wrong", "right")  # heard again; found right then; all judged wrong; right


class RunScorer:
    """A reward pool that knows for how many seconds anything was being scored; much of it overlaps with sampling.

    `audit` is the share of the answers judged wrong that a second verifier hears, at once, where one makes sense.
    """

    def __init__(self, pool: RewardPool, audit: float = 0.0) -> None:
        self.pool, self.audit, self.seconds = pool, audit, 0.0
        self.active, self.since = 0, 0.0
        self.audits: dict[int, tuple[Counter[str], list[Row]]] = {}  # step -> counts, disagreements

    async def score(
        self, chain_id: str, response: str, problem: Problem, spec: Any = None, truncated: bool = False,
        extras: Extras | None = None,
    ) -> Score:  # fmt: skip
        """The pool's verdict."""
        if self.active == 0:
            self.since = time.monotonic()
        self.active += 1
        try:
            score = await self.pool.score(chain_id, response, problem, spec, truncated, extras)
            if extras and extras.step in self.audits and auditable(spec or problem.reward, problem):
                await self._hear_again(score, response, problem, *self.audits[extras.step])
            return score
        finally:
            self.active -= 1
            if self.active == 0:
                self.seconds += time.monotonic() - self.since

    async def _hear_again(
        self, first: Score, response: str, problem: Problem, counts: Counter[str], rows: list[Row]
    ) -> None:
        judged_wrong = first.status in ("wrong", "unparsed")
        counts["wrong" if judged_wrong else "right"] += judged_wrong or first.correct
        if judged_wrong and chosen(first.id, self.audit):
            second = await self.pool.score(first.id, response, problem, SECOND)
            counts["checked"] += second.status in ("ok", "wrong")
            counts["disagreed"] += second.correct
            if second.correct:
                row = {"id": first.id, "problem": problem.prompt, "reference": problem.answer, "first": first.status}
                row |= {"first_detail": first.detail, "second": second.status, "answer": final_answer(response)}
                rows.append(row | {"response_end": response[-TAIL:]})

    def take_seconds(self) -> float:
        """What was added up since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def begin(self, step: int) -> None:
        """Audit this step's chains from here on, and forget what was heard of it before its sampler died."""
        self.audits[step] = Counter(), []

    def take_audit(self, step: int) -> tuple[Row, list[Row]]:
        """Metrics of a step's audit, and the disagreements, in order."""
        counts, rows = self.audits.pop(step, (Counter(), []))
        metrics = {f"rewards/audit_{name}": value for name, value in audit_figures(counts).items()}
        return metrics, [{"step": step} | row for row in sorted(rows, key=lambda row: row["id"])]


def audit_figures(counts: Counter[str]) -> dict[str, float]:
    """Counts, and the share of the right answers that the first verifier missed with its 95 % interval; {} for none.

    With p = disagreed / checked it is p * wrong / (right + p * wrong); the interval is Wilson's of p, put through that.
    """
    checked, disagreed, wrong, right = (counts[name] for name in COUNTS)
    figures: dict[str, float] = {name: counts[name] for name in COUNTS}
    if checked:
        p = disagreed / checked
        for name, share in zip(("", "_low", "_high"), (p, *wilson(p, checked)), strict=True):
            missed = share * wrong
            figures[f"false_negatives{name}"] = missed / (right + missed) if missed else 0.0
    return figures if wrong + right else {}


def check_rewards(groups: Sequence[Group], spec_of: Callable[[Problem], Any], bound: float) -> tuple[Row, list[str]]:
    """Metrics rewards/STATUS/NAME and a sentence for every reward that failed in a step.

    Raises Fault with these sentences where more than a share of `bound` of the step's chains got no verdict.
    """
    scores = [(g.problem, c.score) for g in groups for c in g.chains if c.score is not None]
    failures: dict[str, list[Score]] = {}
    for problem, score in scores:
        if score.status in FAILED:
            spec = spec_of(problem)
            failures.setdefault(spec if isinstance(spec, str) else json.dumps(spec), []).append(score)
    row, lines = Row(), []
    for name, failed in failures.items():
        counts = Counter(score.status for score in failed)
        row |= {f"rewards/{status}/{name}": counts[status] for status in sorted(counts)}
        said = ", ".join(f"{counts[status]} {status}" for status in sorted(counts))
        lines.append(f"reward {name} failed on {len(failed)} of {len(scores)} chains ({said}): {failed[0].detail}")
    if sum(map(len, failures.values())) > bound * len(scores):
        raise Fault(f"{'; '.join(lines)}; more than {bound:.0%} (rewards.max_error_share) stops a run")
    return row, lines
