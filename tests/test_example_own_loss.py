"""examples/own_loss: short, by hand, with the right gradient at ratio 1, and it trains a step as it is configured."""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rl.config import load_config, override_config
from rl.losses import Tokens
from rl.metrics import read_metrics
from rl.presets import find, objective_of
from tests.rl.test_loop import run_once

ROOT = Path(__file__).parent.parent
OWN = "examples/own_loss/own_loss.py"


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_it_is_short() -> None:
    tree = ast.parse((ROOT / OWN).read_text())
    assert len([line for node in tree.body for line in ast.unparse(node).splitlines() if line.strip()]) < 15
    assert len((ROOT / "examples/own_loss/config.yaml").read_text().splitlines()) < 40


def test_its_loss_by_hand() -> None:
    """Ratio 2, advantage 1, bound 0.2: -2 + ln(2)^2 / 0.4; at ratio 1 the gradient is -A."""
    current = torch.tensor([math.log(0.5), -1.0, math.nan], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([math.log(0.25), -1.0, -1.0], dtype=torch.float64)
    mask = torch.tensor([True, True, False])
    tokens = Tokens(current, old, old, torch.tensor([1.0, 0.7, 1.0]), mask, torch.tensor([0, 0, 1]))
    losses = find("loss", f"{OWN}:loss")(tokens, 0.2, 0.2)
    assert losses.tolist() == pytest.approx([-2 + math.log(2) ** 2 / 0.4, -0.7, 0.0])
    losses.sum().backward()
    assert current.grad is not None
    assert current.grad.tolist()[1:] == pytest.approx([-0.7, 0.0])


@pytest.mark.parametrize("more", [[], [f"objective.advantage={OWN}:advantage"]])
def test_it_trains_as_it_is_configured(tmp_path: Path, more: list[str]) -> None:
    small = ["rollout.problems=4", "rollout.group_size=4", "train.steps=1", "train.threads=1", "rewards.workers=1"]
    settings = ["sampler=transformers", f"run.dir={tmp_path}", *small]
    config: Any = override_config(load_config(ROOT / "examples/own_loss/config.yaml"), [*settings, *more])
    assert objective_of(config).loss == f"{OWN}:loss"
    run = run_once(config)
    (row,) = read_metrics(run.metrics)
    assert row["updates/done"] >= 1
    assert math.isfinite(row["loss/policy"])
    assert "own_loss" in run.config.read_text()
