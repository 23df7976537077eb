"""The thinking axis: accuracy against tokens spent a problem, by a cap on thinking and by more samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rl.evaluation.intervals import gain_between
from rl.evaluation.passk import fit_rates
from rl.evaluation.points import Cell, Policy
from rl.evaluation.verdicts import Verdict, decide

BEYOND = 4
"""pass@k is derived up to so many times the samples that were taken."""


@dataclass(frozen=True)
class Doubling:
    """What twice the cap adds."""

    before: int  # cap
    after: int
    tokens_before: float
    tokens_after: float
    gain: float
    ci95: tuple[float, float]

    @property
    def counts(self) -> bool:
        """Whether it adds more than its interval."""
        return self.ci95[0] > 0


@dataclass(frozen=True)
class SamplePoint:
    """k chains for a problem, without a cap (or with the largest): k times the tokens."""

    k: int
    tokens: float
    derived: float | None  # pass@k of the fitted Beta; None where it can't be fitted
    unbiased: float | None  # None past the samples taken
    majority: float | None


@dataclass(frozen=True)
class Thinker:
    """One policy on the axis."""

    name: str
    caps: tuple[Cell, ...]  # by cap, no cap last
    samples: tuple[SamplePoint, ...]
    direct: Cell | None
    direct_gain: tuple[float, tuple[float, float]] | None  # chain - direct, with its interval


@dataclass(frozen=True)
class FrontierPoint:
    """The best that so many tokens bought; `by` is cap, direct, majority or pass@k."""

    tokens: float
    accuracy: float
    policy: str
    by: str
    setting: int | None  # the cap, or k


@dataclass(frozen=True)
class ThinkingAxis:
    """All policies; the verdict is the last one's."""

    thinkers: tuple[Thinker, ...]
    frontier: tuple[FrontierPoint, ...]
    doublings: tuple[Doubling, ...] = ()  # of the last policy
    tail: tuple[float, tuple[float, float]] | None = None  # what all caps past the last counted doubling add
    verdict: Verdict = field(default="undecided")

    @property
    def counted(self) -> int:
        """Doublings that add more than their interval."""
        return sum(doubling.counts for doubling in self.doublings)

    @property
    def saturated_at(self) -> float | None:
        """Tokens after the last doubling that counted (before the first, if none did); None while the last counts."""
        if not self.doublings or self.doublings[-1].counts:
            return None
        last = last_counted(self.doublings)
        return self.doublings[0].tokens_before if last is None else self.doublings[last].tokens_after


def measure_thinking(policies: Sequence[Policy]) -> ThinkingAxis:
    """Place policies on the axis (each with a chain cell, the final one last) and judge the last."""
    thinkers = tuple(_thinker(policy) for policy in policies)
    caps = thinkers[-1].caps
    doublings = tuple(find_doublings(caps))
    tail, verdict = judge(caps, doublings)
    return ThinkingAxis(thinkers, tuple(find_frontier(thinkers)), doublings, tail, verdict)


def find_doublings(caps: Sequence[Cell]) -> Iterable[Doubling]:
    """Every pair of caps of which one is twice the other; from 0 there is none."""
    by_cap = {cell.budget: cell for cell in caps if cell.budget}
    for cap, before in by_cap.items():
        if cap is not None and (after := by_cap.get(2 * cap)) is not None:
            gain, ci95 = gain_between(before.accuracy, after.accuracy)
            yield Doubling(cap, 2 * cap, before.tokens, after.tokens, gain, ci95)


def last_counted(doublings: Sequence[Doubling]) -> int | None:
    """Index of the last doubling that counts, None where none does."""
    return max((i for i, doubling in enumerate(doublings) if doubling.counts), default=None)


def judge(
    caps: Sequence[Cell], doublings: Sequence[Doubling]
) -> tuple[tuple[float, tuple[float, float]] | None, Verdict]:
    """rising while the last doubling counts; else what all larger caps add together (the tail) decides."""
    if not doublings:
        return None, "undecided"
    if doublings[-1].counts:
        return None, "rising"
    last = last_counted(doublings)
    start = doublings[0].before if last is None else doublings[last].after
    by_cap = {cell.budget: cell for cell in caps}
    gain, ci95 = gain_between(by_cap[start].accuracy, by_cap[doublings[-1].after].accuracy)
    verdict = decide(ci95)
    return (gain, ci95), "undecided" if verdict == "rising" else verdict  # together they add, no doubling alone does


def find_frontier(thinkers: Sequence[Thinker]) -> Iterable[FrontierPoint]:
    """The upper envelope of everything measured: each point beats all that cost no more tokens."""
    points = [point for thinker in thinkers for point in _measured(thinker)]
    best = -1.0
    for point in sorted(points, key=lambda point: (point.tokens, -point.accuracy)):
        if point.accuracy > best:
            best = point.accuracy
            yield point


def _measured(thinker: Thinker) -> Iterable[FrontierPoint]:
    for cell in [*thinker.caps, *([thinker.direct] if thinker.direct else [])]:
        by = "direct" if cell is thinker.direct else "cap"
        yield FrontierPoint(cell.tokens, cell.accuracy.value, thinker.name, by, cell.budget)
    for point in thinker.samples:
        for by, value in (("majority", point.majority), ("pass@k", point.unbiased)):
            if value is not None and point.k > 1:
                yield FrontierPoint(point.tokens, value, thinker.name, by, point.k)


def _thinker(policy: Policy) -> Thinker:
    direct, longest = policy.direct, policy.longest
    gain = gain_between(direct.accuracy, longest.accuracy) if direct else None
    return Thinker(policy.name, policy.chains, tuple(_by_samples(longest)), direct, gain)


def _by_samples(cell: Cell) -> Iterable[SamplePoint]:
    """k = 1, 2, 4, … and those measured; nothing where one sample a problem was taken."""
    accuracy, most = cell.accuracy, max(cell.pass_at, default=1)
    told = accuracy.correct is not None and accuracy.judged is not None
    rates = fit_rates(accuracy.correct, accuracy.judged) if told else None  # type: ignore[arg-type]
    reach = BEYOND * most if rates else most
    ks = {*cell.pass_at, *(2**i for i in range(reach.bit_length()))} if most > 1 else set()
    for k in sorted(ks):
        derived = rates.pass_at(k) if rates else None
        yield SamplePoint(k, k * cell.tokens, derived, cell.pass_at.get(k), cell.majority_at.get(k))
