from __future__ import annotations

import pytest

from rewards.errors import BadInput
from rl.config import ObjectiveConfig
from rl.learner import ADVANTAGES, CORRECTIONS, LOSSES
from rl.presets import PRESETS, resolve_objective


def test_overrides_replace_only_what_they_name() -> None:
    got = resolve_objective("grpo", ObjectiveConfig(clip_high=0.28, kl_weight=0.01))
    assert (got.clip_low, got.clip_high, got.kl_weight) == (0.2, 0.28, 0.01)
    assert got.needs_reference
    assert resolve_objective("grpo", ObjectiveConfig()) == PRESETS["grpo"]
    assert not PRESETS["grpo"].needs_reference


def test_every_row_names_functions_that_exist() -> None:
    for preset in PRESETS.values():
        assert preset.loss in LOSSES
        assert preset.advantage in ADVANTAGES
        assert preset.correction in CORRECTIONS


def test_an_unknown_algorithm_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match="grpo"):
        resolve_objective("gpro", ObjectiveConfig())
