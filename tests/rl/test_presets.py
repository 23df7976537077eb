from __future__ import annotations

import pytest

from rewards.errors import BadInput
from rl.config import ObjectiveConfig
from rl.presets import ROWS, resolve_objective


def test_overrides_replace_only_what_they_name() -> None:
    got = resolve_objective("grpo", ObjectiveConfig(clip_high=0.28, kl_weight=0.01))
    assert (got.clip_low, got.clip_high, got.kl_weight) == (0.2, 0.28, 0.01)
    assert got.needs_reference
    assert not resolve_objective("grpo", ObjectiveConfig()).needs_reference


@pytest.mark.parametrize("name", ROWS)
def test_every_row_resolves(name: str) -> None:
    assert resolve_objective(name, ObjectiveConfig()).aggregation


def test_an_unknown_algorithm_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match="gspo"):
        resolve_objective("gsop", ObjectiveConfig())


def test_a_group_of_one_goes_only_where_nothing_is_compared() -> None:
    with pytest.raises(BadInput, match="group_size=1"):
        resolve_objective("grpo", ObjectiveConfig(), group_size=1)
    assert resolve_objective("reinforce++", ObjectiveConfig(), group_size=1).kl_in_reward
