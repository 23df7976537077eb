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
AUDITS = 64  # a step at most, on average: the sample gets smaller where a step has more chains than that allows
COUNTS = ("checked", "disagreed", "wrong", "right")  # of an audit: heard again; found right; all judged wrong, right


class RunScorer:
    """A reward pool that knows for how many seconds anything was being scored; much of it overlaps with sampling.

    Of the answers judged wrong where a second verifier makes sense, a share of `audit` is given to that one at once.
    """

    def __init__(self, pool: RewardPool, audit: float = 0.0) -> None:
        self.pool, self.seconds = pool, 0.0
        self.active, self.since = 0, 0.0
        self.audit = audit
        self.audits: dict[int, tuple[Counter[str], list[Row]]] = {}  # step -> counts, disagreements

    async def score(
        self,
        chain_id: str,
        response: str,
        problem: Problem,
        spec: Any = None,
        truncated: bool = False,
        extras: Extras | None = None,
    ) -> Score:
        """The pool's verdict."""
        if self.active == 0:
            self.since = time.monotonic()
        self.active += 1
        try:
            score = await self.pool.score(chain_id, response, problem, spec, truncated, extras)
            if extras and extras.step in self.audits and auditable(problem.reward if spec is None else spec, problem):
                await self._audit(score, response, problem, *self.audits[extras.step])
            return score
        finally:
            self.active -= 1
            if self.active == 0:
                self.seconds += time.monotonic() - self.since

    async def _audit(
        self, first: Score, response: str, problem: Problem, counts: Counter[str], rows: list[Row]
    ) -> None:
        judged_wrong = first.status in ("wrong", "unparsed")
        counts["wrong" if judged_wrong else "right"] += judged_wrong or first.correct
        if not (judged_wrong and chosen(first.id, self.audit)):
            return
        second = await self.pool.score(first.id, response, problem, SECOND)
        counts["checked"] += second.status in ("ok", "wrong")
        if second.correct:
            counts["disagreed"] += 1
            answer = {"answer": final_answer(response), "reference": problem.answer, "response_end": response[-TAIL:]}
            verdicts = {"first": first.status, "first_detail": first.detail, "second": second.status}
            rows.append({"id": first.id, "problem": problem.prompt} | answer | verdicts)

    def take_seconds(self) -> float:
        """What was added up since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def begin(self, step: int) -> None:
        """Audit this step's chains from here on, and forget what was heard of it before its sampler died."""
        if self.audit:
            self.audits[step] = Counter(), []

    def take_audit(self, step: int) -> tuple[Row, list[Row]]:
        """Metrics of a step's audit, {} where nothing could be audited, and the disagreements in order."""
        counts, rows = self.audits.pop(step, (Counter(), []))
        return audit_metrics(counts), [{"step": step} | row for row in sorted(rows, key=lambda row: row["id"])]


def audit_metrics(counts: Counter[str]) -> Row:
    """Counts of an audit, and with its 95 % interval the share of the right answers that the first verifier missed.

    With p = disagreed / checked, p of the wrong ones are right: p * wrong / (right + p * wrong). The interval is
    Wilson's of p, put through the same formula. {} where nothing could be audited.
    """
    checked, disagreed, wrong, right = (counts[name] for name in COUNTS)
    if not wrong + right:
        return {}
    row: Row = {f"rewards/audit_{name}": counts[name] for name in COUNTS}
    if checked:
        p = disagreed / checked
        for name, share in zip(("", "_low", "_high"), (p, *wilson(p, checked)), strict=True):
            missed = share * wrong
            row[f"rewards/audit_false_negatives{name}"] = missed / (right + missed) if missed else 0.0
    return row


def check_rewards(
    groups: Sequence[Group], spec_of: Callable[[Problem], Any], max_share: float
) -> tuple[Row, list[str]]:
    """Metrics rewards/STATUS/NAME and a sentence for every reward that failed in a step.

    Raises Fault with these sentences where more than `max_share` of the step's chains got no verdict.
    """
    counts: dict[str, Counter[str]] = {}
    reasons: dict[str, str] = {}
    scores = [(g.problem, c.score) for g in groups for c in g.chains if c.score is not None]
    for problem, score in scores:
        if score.status in FAILED:
            spec = spec_of(problem)
            name = spec if isinstance(spec, str) else json.dumps(spec, ensure_ascii=False)
            counts.setdefault(name, Counter())[score.status] += 1
            reasons.setdefault(name, score.detail)
    lines = [
        f"reward {name} gave no verdict on {of.total()} of {len(scores)} chains "
        f"({', '.join(f'{n} {status}' for status, n in sorted(of.items()))}), e.g. {reasons[name]}"
        for name, of in counts.items()
    ]
    failed = sum(of.total() for of in counts.values())
    if failed > max_share * len(scores):
        raise Fault(f"{'; '.join(lines)}; more than {max_share:.0%} (rewards.max_error_share) stops the run")
    return {f"rewards/{status}/{name}": n for name, of in counts.items() for status, n in sorted(of.items())}, lines
