"""Algorithms as data: a name stands for a row of presets.yaml, and nothing else in the code asks for the name."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rewards.errors import BadInput, nearest, one_line
from rewards.registry import import_function
from rl.config import Config, ObjectiveConfig, read_yaml

DEFAULT_KL = {"loss": "k3", "reward": "k1"}  # the estimator for each place
GROUPLESS = {"global_norm", "gae"}  # advantages that need no second chain of a problem
ROWS = read_yaml(Path(__file__).with_name("presets.yaml"))


@dataclass(frozen=True)
class Objective:
    """What is optimised: names of functions (rl.losses, rl.advantages, …, or one's own by path) and their numbers;
    `objective.*` in docs/configuration.md says what each means."""

    loss: str
    advantage: str
    aggregation: str
    clip_low: float
    clip_high: float
    kl_weight: float
    kl_place: str
    kl_estimator: str | None
    correction: str
    no_variance: str
    overlong: str
    retire_above: float | None
    force_close: bool  # thinking is closed early enough for an answer, also without budget.think
    reference_reset: int
    gamma: float
    lam: float

    @property
    def needs_reference(self) -> bool:
        """Whether a frozen copy of the starting policy must be held."""
        return self.kl_weight > 0

    @property
    def kl_in_reward(self) -> bool:
        return self.needs_reference and self.kl_place == "reward"

    @property
    def needs_critic(self) -> bool:
        return self.advantage == "gae"


def objective_of(config: Config) -> Objective:
    """What a run optimises; raises what `resolve_objective` raises."""
    model, rollout = config.model, config.rollout
    return resolve_objective(config.algorithm, config.objective, rollout.group_size, model.lora is not None)


def resolve_objective(algorithm: str, overrides: ObjectiveConfig, group_size: int = 2, lora: bool = False) -> Objective:
    """The row of an algorithm with the overrides that are not null. Raises BadInput for what is unknown, or does not go
    with the rest; functions of one's own are imported."""
    if algorithm not in ROWS:
        raise BadInput(f"algorithm={algorithm!r} is unknown; choose one of {', '.join(ROWS)}")
    found = Objective(**ROWS["grpo"] | ROWS[algorithm] | overrides.model_dump(exclude_none=True))
    objective = replace(found, kl_estimator=found.kl_estimator or DEFAULT_KL[found.kl_place])
    if (objective.kl_place, objective.kl_estimator) == ("loss", "k1"):
        raise BadInput("objective.kl_estimator=k1 in the loss has no gradient on average; use k2, k3, or the reward")
    if group_size < 2 and objective.advantage not in GROUPLESS:
        raise BadInput(f"rollout.group_size={group_size} is too few for {objective.advantage}; use 2 or more")
    if objective.reference_reset and (lora or not objective.needs_reference):
        raise BadInput("objective.reference_reset needs objective.kl_weight above 0, and a reference beside no adapter")
    find("loss", objective.loss)
    find("advantage", objective.advantage)
    return objective


def find(kind: str, name: str) -> Callable[..., Any]:
    """The loss or advantage of a name, or one's own by path. Raises BadInput."""
    from rl.advantages import ADVANTAGES
    from rl.losses import LOSSES

    known: dict[str, Any] = dict(LOSSES if kind == "loss" else ADVANTAGES)
    where = f"objective.{kind}={name!r}"
    if ":" not in name and name not in known:
        raise BadInput(f"{where} is unknown; {nearest(name, known)} (or one's own: module:function, path.py:function)")
    try:
        if callable(found := known[name] if name in known else import_function(name, where)):
            return found
        raise BadInput(f"{where} is {found!r}, no function")
    except BadInput:
        raise
    except Exception as error:  # whatever a module of one's own makes it raise
        raise BadInput(one_line(f"{where} does not load: {type(error).__name__}: {error}")) from None
