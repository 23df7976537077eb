"""Algorithms as data: each row as the design has it, overrides, refusals; a loss or an advantage of one's own."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from rewards.errors import BadInput
from rl.config import ObjectiveConfig
from rl.presets import ROWS, find, resolve_objective

PLAIN: dict[str, Any] = {
    "kl_weight": 0.0, "kl_place": "loss", "kl_estimator": "k3", "correction": "none", "no_variance": "keep",
    "overlong": "none", "retire_above": None, "force_close": False, "reference_reset": 0, "gamma": 1.0, "lam": 1.0,
}  # fmt: skip
KL_IN_THE_REWARD = {"kl_weight": 0.001, "kl_place": "reward", "kl_estimator": "k1"}
SCALERL = {"no_variance": "drop", "retire_above": 0.9, "force_close": True}
TABLE: dict[str, tuple[str, str, float, float, str, dict[str, Any]]] = {
    # advantage, loss, clip below and above, aggregation, besides
    "grpo": ("group_norm", "clip", 0.2, 0.2, "sequence_mean", {}),
    "dr_grpo": ("group_mean", "clip", 0.2, 0.2, "fixed_length", {}),
    "dapo": ("group_norm", "clip", 0.2, 0.28, "token_mean", {"no_variance": "replace", "overlong": "soft"}),
    "gspo": ("group_norm", "gspo", 3e-4, 4e-4, "sequence_mean", {}),
    "cispo": ("group_mean_batch_std", "cispo", 0.2, 4.0, "token_mean", {}),
    "rloo": ("leave_one_out", "reinforce", 0.2, 0.2, "sequence_sum", {}),
    "reinforce++": ("global_norm", "clip", 0.2, 0.2, "token_mean", KL_IN_THE_REWARD),
    "ppo": ("gae", "clip", 0.2, 0.2, "token_mean", {}),
    "scalerl": ("group_mean_batch_std", "cispo", 0.2, 4.0, "prompt_mean", SCALERL),
    "dppo": ("group_norm", "dppo", 0.15, 0.15, "token_mean", {}),
    "maxrl": ("mean_norm", "clip", 0.2, 0.2, "sequence_mean", {}),
    "sapo": ("group_norm", "sapo", 0.2, 0.2, "sequence_mean", {}),
    "gdpo": ("parts_norm", "clip", 0.2, 0.2, "sequence_mean", {}),
}


@pytest.mark.parametrize("name", TABLE)
def test_rows_are_those_of_the_design(name: str) -> None:
    advantage, loss, low, high, aggregation, besides = TABLE[name]
    want = PLAIN | {"advantage": advantage, "loss": loss, "clip_low": low, "clip_high": high} | besides
    found = resolve_objective(name, ObjectiveConfig())
    assert {key: value for key, value in asdict(found).items() if key in want} == want
    assert found.aggregation == aggregation
    assert found.needs_critic == (name == "ppo")
    assert found.needs_reference == found.kl_in_reward == (name == "reinforce++")


def test_no_row_is_missing_and_no_other_code_asks_for_a_name() -> None:
    assert set(TABLE) == set(ROWS)
    names = [name for name in TABLE if name not in ("gspo", "cispo", "dppo", "sapo")]  # names of losses as well
    for path in Path(__file__).parents[2].glob("rl/**/*.py"):
        text = path.read_text()
        assert not [name for name in names if f'== "{name}"' in text or f'in ("{name}"' in text], path


def test_overrides_replace_only_what_they_name() -> None:
    got = resolve_objective("grpo", ObjectiveConfig(clip_high=0.28, kl_weight=0.01))
    assert (got.clip_low, got.clip_high, got.kl_weight) == (0.2, 0.28, 0.01)
    assert got.needs_reference
    assert not resolve_objective("grpo", ObjectiveConfig()).needs_reference
    assert not resolve_objective("reinforce++", ObjectiveConfig(kl_weight=0.0)).needs_reference


def test_the_estimator_follows_the_place_unless_it_is_named() -> None:
    def estimator(**objective: Any) -> str | None:
        return resolve_objective("grpo", ObjectiveConfig(kl_weight=0.1, **objective)).kl_estimator

    assert (estimator(), estimator(kl_place="reward")) == ("k3", "k1")
    assert (estimator(kl_estimator="k2"), estimator(kl_place="reward", kl_estimator="k3")) == ("k2", "k3")


@pytest.mark.parametrize(
    ("objective", "more", "words"),
    [
        ({"kl_estimator": "k1"}, {}, "no gradient"),
        ({"reference_reset": 5}, {}, "kl_weight above 0"),
        ({"reference_reset": 5, "kl_weight": 0.1}, {"lora": True}, "adapter"),
        ({}, {"group_size": 1}, "group_size=1"),
        ({"loss": "clpi"}, {}, "'clip'"),
        ({"advantage": "group"}, {}, "group_norm"),
    ],
)
def test_what_can_not_be_is_refused_in_a_line(objective: dict[str, Any], more: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words) as caught:
        resolve_objective("grpo", ObjectiveConfig(**objective), **more)
    assert "\n" not in str(caught.value)


def test_an_unknown_algorithm_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match="gspo"):
        resolve_objective("gsop", ObjectiveConfig())


def test_a_group_of_one_goes_only_where_nothing_is_compared() -> None:
    assert resolve_objective("reinforce++", ObjectiveConfig(), group_size=1).kl_in_reward
    assert resolve_objective("ppo", ObjectiveConfig(), group_size=1).needs_critic
    for name in set(ROWS) - {"reinforce++", "ppo"}:
        with pytest.raises(BadInput, match="group_size=1"):
            resolve_objective(name, ObjectiveConfig(), group_size=1)


# --- one's own


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "good_maths.py").write_text("def loss(tokens, low, high):\n    return -tokens.pull\n\n\nanswer = 42\n")
    (tmp_path / "broken_maths.py").write_text("raise RuntimeError('line one\\nline two')\n")
    (tmp_path / "lacking_maths.py").write_text("import not_installed_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("good_maths", "broken_maths", "lacking_maths"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_ones_own_by_module_and_by_file(own: Path) -> None:
    for name in ("good_maths:loss", "good_maths.py:loss", f"{own}/good_maths.py:loss"):
        assert find("loss", name).__name__ == "loss"
        assert resolve_objective("grpo", ObjectiveConfig(loss=name, advantage=name)).loss == name


@pytest.mark.parametrize("kind", ["loss", "advantage"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module:loss", "no module 'no_such_module'"),
        ("no_such_file.py:loss", "no file 'no_such_file.py'"),
        ("good_maths:lsos", "'loss'"),
        ("broken_maths:loss", "RuntimeError: line one"),
        ("lacking_maths:loss", "not_installed_anywhere"),
        ("good_maths.loss", "module:function"),
        ("good_maths:answer", "is 42, no function"),
    ],
)
def test_ones_own_that_does_not_load_is_refused_in_a_line(own: Path, kind: str, name: str, words: str) -> None:
    with pytest.raises(BadInput, match=words) as caught:
        resolve_objective("grpo", ObjectiveConfig.model_validate({kind: name}))
    assert str(caught.value).startswith(f"objective.{kind}='{name}'")
    assert "\n" not in str(caught.value)
