"""Pre-training: the loss falls, the same seed gives the same weights, and what is saved loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from rewards.errors import BadInput
from rl.config import load_section
from rl.model import load_policy
from rl.pretrain import PretrainConfig, pretrain, schedule, trace_batches, train_step
from rollout.prompt import Template

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "configs/models/countdown-tiny")


def make_config(out: Path, **extra: object) -> PretrainConfig:
    return PretrainConfig.model_validate(
        {"model": MODEL, "out": str(out), "steps": 6, "tokens_per_step": 600, "warmup_steps": 2, "threads": 1} | extra
    )


def test_the_loss_falls_and_the_seed_decides(tmp_path) -> None:
    pretrain(make_config(tmp_path / "a"))
    last = pretrain(make_config(tmp_path / "b"))
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    record = json.loads((tmp_path / "b" / "pretrain.json").read_text())
    assert record["log"][-1]["loss"] == last < 5.4  # ln 216 = 5.38 nats is knowing nothing
    assert load_policy(tmp_path / "b", "float32", 0)[1]


def test_a_model_may_be_trained_where_its_config_lies(tmp_path) -> None:
    for file in Path(MODEL).glob("*.json"):
        shutil.copy(file, tmp_path)
    pretrain(make_config(tmp_path, model=str(tmp_path), steps=1))
    assert (tmp_path / "pretrain.json").exists()
    assert load_policy(tmp_path, "float32", 0)[1]


def test_prompts_are_given_and_not_learnt() -> None:
    template = Template.load(MODEL, think=True)
    chain = next(trace_batches(make_config(Path("x")), template))[0]
    assert not any(chain.sampled[: chain.prompt_len])
    assert all(chain.sampled[chain.prompt_len :])
    assert chain.token_ids[chain.prompt_len - 1] == template.open_ids[0]
    assert chain.token_ids[-1] == template.stop_ids[0]


def test_a_step_is_the_same_however_it_is_cut() -> None:
    config = make_config(Path("x"), tokens_per_step=900)
    chains = next(trace_batches(config, Template.load(MODEL, think=True)))
    losses, weights = [], []
    for room in (200, 100_000):
        policy, _ = load_policy(MODEL, "float32", 0, fresh=True)
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
        losses.append(train_step(policy, optimizer, chains, room))
        weights.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert torch.allclose(weights[0], weights[1], atol=1e-6)


def test_schedule_warms_up_and_ends_at_zero() -> None:
    config = make_config(Path("x"), steps=12, warmup_steps=2)
    assert [schedule(step, config) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert schedule(7, config) == pytest.approx(0.5)
    assert schedule(12, config) == pytest.approx(0.0)


def test_wrong_keys_and_tasks_are_refused(tmp_path) -> None:
    path = str(ROOT / "configs/pretrain_tiny.yaml")
    with pytest.raises(BadInput, match="did you mean 'steps'"):
        load_section(PretrainConfig, path, ["stepz=3"])
    with pytest.raises(BadInput, match="no countdown problem"):
        pretrain(make_config(tmp_path, task="letters"))
