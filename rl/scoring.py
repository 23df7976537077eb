"""How a run's chains are scored: timed, its failures named, a sample of the answers judged wrong heard again."""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rewards.answer import final_answer
from rewards.audit import SECOND, TAIL, auditable, chosen
from rewards.errors import Fault
from rewards.pool import RewardPool
from rewards.types import Problem, Score
from rl.build import Setup
from rl.metrics import Row
from rollout.evaluate import wilson
from rollout.types import Group

FAILED = ("error", "rejected")
AUDITS = 64  # a step on average, at most
COUNTS = ("checked", "disagreed", "wrong", "right")  # heard again; found right then; all judged wrong; right


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


def check_rewards(
    groups: Sequence[Group], spec_of: Callable[[Problem], Any], bound: float, say: Callable[[str], None]
) -> Row:
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
