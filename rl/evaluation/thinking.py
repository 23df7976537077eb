"""The thinking axis: accuracy against tokens spent a problem, by a cap on thinking and by more samples."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import betaln

from rl.evaluation.accuracy import Accuracy, Array, Gain, Verdict, gain_between
from rl.views import words

BEYOND = 4  # pass@k is derived up to so many times the samples that were taken
RATES = (np.log(1e-3), np.log(1e4))  # bounds of log a and log b, for problems all alike or all certain


class Cell(NamedTuple):
    """One prompt at one thinking cap, all tasks of the evaluation together."""

    prompt: str
    budget: int | None  # None = no cap
    tokens: float  # really spent, mean of a chain
    accuracy: Accuracy
    pass_at: dict[int, float]  # unbiased
    majority_at: dict[int, float]


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
        return next((cell for cell in self.cells if cell.prompt == "direct"), None)

    @property
    def longest(self) -> Cell:
        """The chain cell with the largest cap (without chains, the direct one)."""
        return (self.caps or self.cells)[-1]

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """k chains a problem at k times the tokens, without a cap (or with the largest): k = 1, 2, 4, … and measured.
        {k, tokens, derived: pass@k of the fitted Beta, unbiased: pass@k of the samples taken, majority}, null where
        there is none. No rows where one sample a problem was taken."""
        cell, most = self.longest, max(self.longest.pass_at, default=1)
        if most == 1:
            return []
        rates = fit_rates(cell.accuracy.outcomes) if cell.accuracy.outcomes is not None else None
        reach = BEYOND * most if rates else most
        return [
            {"k": k, "tokens": k * cell.tokens, "derived": pass_at(k, *rates) if rates else None}
            | {"unbiased": cell.pass_at.get(k), "majority": cell.majority_at.get(k)}
            for k in sorted({*cell.pass_at, *(2**i for i in range(reach.bit_length()))})
        ]


class ThinkingAxis(NamedTuple):
    """All policies; doublings and verdict are the last one's."""

    thinkers: list[Thinker]
    doublings: list[tuple[Cell, Cell, Gain]]  # a cap, twice that, and what this adds
    saturated_at: float | None  # tokens after the last doubling that counts; None while the last of all does
    tail: Gain | None  # what all caps past that add together

    @property
    def counted(self) -> list[tuple[Cell, Cell, Gain]]:
        """Doublings that add more than their interval."""
        return [doubling for doubling in self.doublings if doubling[2].verdict == "rising"]

    @property
    def verdict(self) -> Verdict:
        """rising while the last doubling counts; else what all larger caps add together tells, which is never that."""
        if self.tail is None:
            return "rising" if self.doublings else "undecided"
        return "saturated" if self.tail.verdict == "saturated" else "undecided"

    @property
    def words(self) -> str:
        return words("thinking_axis", self)

    def to_json(self) -> dict[str, Any]:
        def row(thinker: Thinker, cell: Cell) -> dict[str, Any]:
            place = {"policy": thinker.name, "prompt": cell.prompt, "budget": cell.budget, "tokens": cell.tokens}
            return place | cell.accuracy.to_json()

        return {
            "points": [row(thinker, cell) for thinker in self.thinkers for cell in thinker.caps],
            "direct": [row(thinker, thinker.direct) for thinker in self.thinkers if thinker.direct],
            "samples": [{"policy": thinker.name} | point for thinker in self.thinkers for point in thinker.samples],
            "policy": self.thinkers[-1].name,
            "doublings": len(self.counted),
            "doubling_list": [
                {"caps": [cap.budget, twice.budget], "tokens": [cap.tokens, twice.tokens]} | added._asdict()
                for cap, twice, added in self.doublings
            ],
            "tail": self.tail and self.tail._asdict(),
        } | {name: getattr(self, name) for name in ("saturated_at", "verdict", "words")}


def measure_thinking(thinkers: list[Thinker]) -> ThinkingAxis:
    """Place policies on the axis (each with a chain cell, the final one last) and judge the last."""
    caps = {cell.budget: cell for cell in thinkers[-1].caps if cell.budget}
    pairs = [(cell, caps[2 * cap]) for cap, cell in caps.items() if 2 * cap in caps]
    doublings = [(cell, twice, gain_between(cell.accuracy, twice.accuracy)) for cell, twice in pairs]
    if not doublings or doublings[-1][2].verdict == "rising":
        return ThinkingAxis(thinkers, doublings, None, None)
    start = next((twice for _, twice, added in doublings[::-1] if added.verdict == "rising"), doublings[0][0])
    return ThinkingAxis(thinkers, doublings, start.tokens, gain_between(start.accuracy, doublings[-1][1].accuracy))


def fit_rates(outcomes: Array) -> tuple[float, float] | None:
    """(a, b) of the Beta that problems' own pass@1 come from, most likely for outcomes [P, 2] (correct, judged).
    log L = sum of log B(a + c, b + n - c) - log B(a, b), the beta-binomial's up to a constant (arXiv 2407.21787).
    With one sample a problem only the mean is known, never the spread: None."""
    correct, judged = outcomes[outcomes[:, 1] > 0].T
    if not (judged > 1).any():
        return None

    def loss(theta: Array) -> float:
        a, b = np.exp(theta)
        return -float((betaln(a + correct, b + judged - correct) - betaln(a, b)).mean())

    share = (correct.sum() + 1) / (judged.sum() + 2)
    starts = [np.log([share * total, (1 - share) * total]) for total in (0.5, 5.0, 50.0)]
    found = [minimize(loss, np.clip(start, *RATES), method="L-BFGS-B", bounds=[RATES] * 2) for start in starts]
    a, b = np.exp(min(found, key=lambda result: result.fun).x)
    return float(a), float(b)


def pass_at(k: int, a: float, b: float) -> float:
    """E[1 - (1 - p)^k] = 1 - B(a, b + k) / B(a, b) for p from Beta(a, b)."""
    return float(-np.expm1(betaln(a, b + k) - betaln(a, b)))
