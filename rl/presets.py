"""Algorithms as data: a name stands for a row of choices, and nothing else in the code asks for the name."""

from dataclasses import dataclass, replace

from rewards.errors import BadInput
from rl.config import ObjectiveConfig


@dataclass(frozen=True)
class Objective:
    """What is optimised: names of functions (the learner's tables resolve them) and their numbers."""

    loss: str
    advantage: str
    aggregation: str
    clip_low: float
    clip_high: float
    kl_weight: float
    correction: str

    @property
    def needs_reference(self) -> bool:
        """Whether a frozen copy of the starting policy must be held."""
        return self.kl_weight > 0


PRESETS: dict[str, Objective] = {
    "grpo": Objective(
        loss="clip", advantage="group_norm", aggregation="sequence_mean",
        clip_low=0.2, clip_high=0.2, kl_weight=0.0, correction="none",
    ),
}  # fmt: skip
"""Rows of the table in docs/algorithms.md."""


def resolve_objective(algorithm: str, overrides: ObjectiveConfig) -> Objective:
    """The preset with the overrides that are not null. Raises BadInput for an unknown algorithm."""
    if algorithm not in PRESETS:
        raise BadInput(f"algorithm={algorithm!r} is unknown; choose one of {', '.join(sorted(PRESETS))}")
    return replace(PRESETS[algorithm], **overrides.model_dump(exclude_none=True))
