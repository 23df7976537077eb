"""The thinking axis: accuracy against tokens spent a problem, by a cap on thinking and by more samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from rl.evaluation.accuracy import Accuracy, Gain, Verdict, gain_between
from rl.evaluation.fits import fit_rates, pass_at

BEYOND = 4  # pass@k is derived up to so many times the samples that were taken


@dataclass(frozen=True)
class Cell:
    """One prompt at one thinking cap, all tasks of the evaluation together."""

    prompt: str
    budget: int | None  # None = no cap
    tokens: float  # really spent, mean of a chain
    accuracy: Accuracy
    pass_at: dict[int, float]  # unbiased
    majority_at: dict[int, float]


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
    """Weights whose thinking was measured."""

    name: str
    cells: tuple[Cell, ...]  # the smallest cap first, no cap last

    @cached_property
    def caps(self) -> tuple[Cell, ...]:
        """Cells that think: prompted by `cot`, or by another prompt where there is none."""
        chains = tuple(cell for cell in self.cells if cell.prompt != "direct")
        return tuple(cell for cell in chains if cell.prompt == "cot") or chains

    @property
    def direct(self) -> Cell | None:
        """The cell that answers at once."""
        return next((cell for cell in self.cells if cell.prompt == "direct"), None)

    @property
    def longest(self) -> Cell:
        """The chain cell with the largest cap (without chains, the direct one)."""
        return (self.caps or self.cells)[-1]

    @cached_property
    def samples(self) -> tuple[SamplePoint, ...]:
        """k = 1, 2, 4, … and those measured; none where one sample a problem was taken."""
        cell, most = self.longest, max(self.longest.pass_at, default=1)
        if most == 1:
            return ()
        rates = fit_rates(cell.accuracy.outcomes) if cell.accuracy.outcomes is not None else None
        reach = BEYOND * most if rates else most
        ks = sorted({*cell.pass_at, *(2**i for i in range(reach.bit_length()))})
        derived = {k: pass_at(k, *rates) for k in ks} if rates else {}
        return tuple(
            SamplePoint(k, k * cell.tokens, derived.get(k), cell.pass_at.get(k), cell.majority_at.get(k)) for k in ks
        )


@dataclass(frozen=True)
class Doubling:
    """What twice the cap adds; it counts where that is more than its interval: where it is rising."""

    before: Cell
    after: Cell
    added: Gain


@dataclass(frozen=True)
class ThinkingAxis:
    """All policies; doublings and verdict are the last one's."""

    thinkers: list[Thinker]
    doublings: list[Doubling]
    counted: list[Doubling]  # those that count
    verdict: Verdict
    saturated_at: float | None  # tokens after the last doubling that counts; None while the last of all does
    tail: Gain | None  # what all caps past that add together


def measure_thinking(thinkers: list[Thinker]) -> ThinkingAxis:
    """Place policies on the axis (each with a chain cell, the final one last) and judge the last.

    rising while the last doubling counts; else what all larger caps add together tells saturated from undecided.
    """
    caps = {cell.budget: cell for cell in thinkers[-1].caps if cell.budget}
    pairs = [(cell, caps[2 * cap]) for cap, cell in caps.items() if 2 * cap in caps]
    doublings = [Doubling(before, after, gain_between(before.accuracy, after.accuracy)) for before, after in pairs]
    counted = [doubling for doubling in doublings if doubling.added.verdict == "rising"]
    verdict: Verdict = doublings[-1].added.verdict if doublings else "undecided"
    saturated_at = tail = None
    if doublings and verdict != "rising":
        start = counted[-1].after if counted else doublings[0].before
        saturated_at, tail = start.tokens, gain_between(start.accuracy, doublings[-1].after.accuracy)
        verdict = "saturated" if tail.verdict == "saturated" else "undecided"  # not rising: none of them does alone
    return ThinkingAxis(thinkers, doublings, counted, verdict, saturated_at, tail)
