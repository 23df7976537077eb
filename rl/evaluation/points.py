"""Measured points of both axes: what was counted, with its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.metrics import Row

Array = NDArray[np.floating[Any]]

COMPUTE = {
    "flops": ("total/flops/train", "total/flops/rollout"),
    "tokens": ("total/tokens/generated",),
    "steps": ("step",),
    "seconds": ("total/time/step",),
}
"""What the training axis may count, and the metrics of a step that add up to it."""


@dataclass(frozen=True)
class Accuracy:
    """pass@1 of one evaluation. Points with as many problems in `correct` hold the same ones, in the same order."""

    value: float
    ci95: tuple[float, float]
    problems: int
    correct: Array | None = None  # [P] correct samples of a problem; None where the file does not tell
    judged: Array | None = None  # [P] its judged samples

    @property
    def variance(self) -> float:
        """Of the measured mean. Never 0: the share is drawn towards 1/2 by two successes in four (Agresti-Coull)."""
        share = (self.value * self.problems + 2) / (self.problems + 4)
        if self.correct is None or self.judged is None:
            return share * (1 - share) / self.problems
        rates = self.correct[self.judged > 0] / self.judged[self.judged > 0]
        spread = float(rates.var(ddof=1)) / len(rates) if len(rates) > 1 else 0.0
        return max(spread, share * (1 - share) / float(self.judged.sum()))

    @property
    def size(self) -> float:
        """Problems with one sample each that would measure as exactly."""
        share = (self.value * self.problems + 2) / (self.problems + 4)
        return share * (1 - share) / self.variance


@dataclass(frozen=True)
class TrainPoint:
    """A checkpoint on val."""

    step: int
    compute: dict[str, float]  # cumulative, by the names of COMPUTE
    accuracy: Accuracy


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
class Policy:
    """Weights whose thinking was measured."""

    name: str
    cells: tuple[Cell, ...]  # the smallest cap first, no cap last

    @property
    def chains(self) -> tuple[Cell, ...]:
        """Cells that think: prompted by `cot`, or by another prompt where there is none."""
        prompts = {cell.prompt for cell in self.cells} - {"direct"}
        chosen = "cot" if "cot" in prompts else min(prompts, default=None)
        return tuple(cell for cell in self.cells if cell.prompt == chosen)

    @property
    def direct(self) -> Cell | None:
        """The cell that answers at once."""
        return next((cell for cell in self.cells if cell.prompt == "direct"), None)

    @property
    def longest(self) -> Cell:
        """The chain cell with the largest cap (without chains, the direct one)."""
        return (self.chains or self.cells)[-1]


@dataclass(frozen=True)
class RunPoints:
    """What one run directory, or the evaluation files given beside, holds."""

    name: str
    train: tuple[TrainPoint, ...] = ()
    policies: tuple[Policy, ...] = ()
    rows: tuple[Row, ...] = field(default=(), repr=False)  # metrics.jsonl
    config: dict[str, Any] = field(default_factory=dict, repr=False)  # config.yaml as it stands
