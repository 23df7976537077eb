"""The critic: what it says at first, what it learns, that it is a model of its own, and what survives a resume."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rewards.errors import Fault
from rl.batch import build_batch
from rl.checkpoint import latest_checkpoint
from rl.config import CriticConfig, ObjectiveConfig, TrainConfig, override_config
from rl.critic import Critic
from rl.flops import ModelShape, forward_flops, training_flops
from rl.learner import Learner, StepState
from rl.presets import resolve_objective
from rl.rundir import RunDir
from rollout.types import Group
from tests.rl.chains import make_chain, make_group, random_groups, small_model
from tests.rl.test_invariance import CUTS, GROUPS, flat_gradient
from tests.rl.test_learner import constant_reward, weights
from tests.rl.test_loop import figures, make_config, optimizer, run_once
from tests.rl.test_loop import weights as saved_weights

CHAINS = [chain for group in GROUPS for chain in group.chains]


def make_learner(
    objective: dict[str, Any] | None = None, critic: dict[str, Any] | None = None, dtype: torch.dtype = torch.float32,
    total_steps: int = 10, **train: Any,
) -> Learner:  # fmt: skip
    wanted = resolve_objective("ppo", ObjectiveConfig(**(objective or {})))
    settings = TrainConfig(**({"threads": 1, "learning_rate": 1e-2, "tokens_per_microbatch": 64} | train))
    own = small_model(seed=1).to(dtype), CriticConfig(**({"learning_rate": 1e-2} | (critic or {})))
    reference = small_model() if wanted.needs_reference else None
    return Learner(
        small_model().to(dtype), wanted, settings, temperature=1.0, total_steps=total_steps, critic=own,
        reference=reference,
    )  # fmt: skip


def critic_of(learner: Learner) -> Critic:
    assert learner.critic is not None
    return learner.critic


def critic_weights(learner: Learner) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for _, p, _ in critic_of(learner).trained])


def wake(learner: Learner) -> None:
    """Give the last layer weights, so that values differ."""
    model, generator = critic_of(learner).model, torch.Generator().manual_seed(3)
    with torch.no_grad():
        model.weight.copy_(torch.randn(model.weight.shape, generator=generator, dtype=torch.float64) * 0.2)
        model.bias.fill_(0.3)


def valued(learner: Learner, groups: list[Group]) -> StepState:
    """A step's state with old values, returns and advantages."""
    state = learner.prepare(build_batch(groups, 0, company=1))
    critic_of(learner).score(state)
    learner.estimate(state)
    return state


def test_values_are_exactly_zero_at_first_and_the_body_is_not_the_policys() -> None:
    learner = make_learner()
    state = valued(learner, random_groups())
    assert state.values.tolist() == [0.0] * len(state.values)
    shared = {p.data_ptr() for p in learner.policy.parameters()}
    assert not shared & {p.data_ptr() for _, p, _ in critic_of(learner).trained}


def test_a_learner_that_needs_a_critic_must_be_given_one() -> None:
    with pytest.raises(ValueError, match="critic"):
        Learner(
            small_model(), resolve_objective("ppo", ObjectiveConfig()), TrainConfig(), temperature=1.0, total_steps=1
        )


def test_values_to_advantages_to_returns_by_hand() -> None:
    """gamma 0.5, lam 0.5. First chain: values 1, 2, 4, reward 8, the token between the last two inserted.
    Deltas: 0.5 2 - 1 = 0; 0.5 4 - 2 = 0; 8 - 4 = 4. Advantages: 4; 0 + 0.25 4 = 1; 0 + 0.25 1 = 0.25.
    Second chain: value 3, reward 0, advantage -3. Returns = advantages + values."""
    learner = make_learner({"gamma": 0.5, "lam": 0.5})
    first, second = make_chain([1, 2, 3, 9, 4], 1, value=8.0, inserted=(3,)), make_chain([1, 2], 1)
    state = learner.prepare(build_batch([make_group([first, second])], 0, company=1))
    state.values = torch.tensor([1.0, 2.0, 4.0, 3.0], dtype=torch.float64)
    learner.estimate(state)
    assert state.returns.tolist() == [1.25, 3.0, 8.0, 0.0]
    # whitened: mean 2.25 / 4, squares 0.0625 + 1 + 16 + 9 less 4 mean^2, over 3
    raw, mean, std = [0.25, 1.0, 4.0, -3.0], 0.5625, math.sqrt((26.0625 - 4 * 0.5625**2) / 3)
    assert state.advantages.tolist() == pytest.approx([(a - mean) / std for a in raw], rel=1e-5)


def test_a_token_that_is_not_trained_stays_out_of_the_whitening_but_in_the_sum() -> None:
    learner = make_learner()
    lost = replace(make_chain([1, 2, 3], 1, value=1.0), sampler_logprobs=[0.0, math.nan, -1.0])
    state = learner.prepare(build_batch([make_group([lost, make_chain([1, 2], 1)])], 0, company=1))
    state.values = torch.tensor([0.5, 0.25, 0.5], dtype=torch.float64)
    learner.estimate(state)
    assert state.returns.tolist() == [1.0, 1.0, 0.0]
    # 0.75 and -0.5 are whitened: half their distance over sqrt(2) half their distance
    assert state.advantages.tolist() == pytest.approx([0.0, math.sqrt(0.5), -math.sqrt(0.5)])
    assert critic_of(learner).stats(state)["values/mean"] == 0.375


def padded_values(learner: Learner, dtype: torch.dtype) -> tuple[list[Tensor], torch.nn.Module]:
    """Values before every token but the first of each chain, from a right-padded pass through sdpa, and the body."""
    critic, body = critic_of(learner).model, small_model(name="sdpa", seed=1).to(dtype).base_model
    longest = max(len(c.token_ids) for c in CHAINS)
    ids = torch.tensor([c.token_ids + [0] * (longest - len(c.token_ids)) for c in CHAINS])
    mask = torch.tensor([[1] * len(c.token_ids) + [0] * (longest - len(c.token_ids)) for c in CHAINS])
    hidden = body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    values = (hidden * critic.weight.detach()).sum(-1) + critic.bias.detach()
    rows = [row[: len(c.token_ids) - 1] for row, c in zip(values, CHAINS, strict=True)]
    return rows, body


def slow_gradient(learner: Learner, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Old values, returns and the body's gradient, token after token; gamma 0.9, lam 0.8, clip 0.2."""
    rows, body = padded_values(learner, dtype)
    values, returns, losses = [], [], []
    for chain, row in zip(CHAINS, rows, strict=True):
        assert chain.score is not None
        told = [row[t - 1] for t, sampled in enumerate(chain.sampled) if sampled]
        advantage, following, backwards = 0.0, 0.0, []
        for i, value in reversed(list(enumerate(float(v.detach()) for v in told))):
            reward = float(chain.score.value or 0.0) if i == len(told) - 1 else 0.0
            advantage = reward + 0.9 * following - value + 0.9 * 0.8 * advantage
            following = value
            backwards.append(advantage + value)
        returns += backwards[::-1]
        values += [float(v.detach()) for v in told]
        losses += told
    old = torch.tensor(values, dtype=dtype) + SHIFT[: len(values)].to(dtype)
    wanted = torch.tensor(returns, dtype=dtype)
    total = torch.zeros((), dtype=dtype)
    for now, before, goal in zip(losses, old, wanted, strict=True):
        limited = before + (now - before).clamp(-0.2, 0.2)
        total = total + torch.maximum((now - goal) ** 2, (limited - goal) ** 2) / 2
    (total / len(losses)).backward()
    return torch.tensor(values, dtype=dtype), wanted, flat_gradient(body)


SHIFT = torch.randn(500, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 0.3
"""What the values have moved by since the batch's start, so that some are beyond the clip."""


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_packed_and_padded_agree_however_a_minibatch_is_cut(cut: str, dtype: torch.dtype) -> None:
    given: dict[str, Any] = {"tokens_per_microbatch": CUTS[cut], "max_grad_norm": 1e9}
    learner = make_learner({"gamma": 0.9, "lam": 0.8}, dtype=dtype, **given)
    wake(learner)
    values, returns, gradient = slow_gradient(learner, dtype)
    state = valued(learner, GROUPS)
    close: dict[str, Any] = {"atol": 1e-10 if dtype == torch.float64 else 1e-5, "rtol": 0}
    torch.testing.assert_close(state.values.to(dtype), values, **close)
    torch.testing.assert_close(state.returns.to(dtype), returns, **close)
    state.values += SHIFT[: len(values)]
    _, norm = critic_of(learner).accumulate(state, state.batch.sequences)
    got = flat_gradient(critic_of(learner).model.body)
    assert (got - gradient).norm() / gradient.norm() < (1e-10 if dtype == torch.float64 else 1e-5)
    assert norm == pytest.approx(float(flat_gradient(critic_of(learner).model).norm()), rel=1e-5)


def test_gradient_with_checkpointing_is_the_same() -> None:
    got = []
    for checkpointing in (False, True):
        learner = make_learner(dtype=torch.float64, gradient_checkpointing=checkpointing)
        wake(learner)
        critic_of(learner).accumulate(valued(learner, GROUPS), list(range(8)))
        got.append(flat_gradient(critic_of(learner).model))
    torch.testing.assert_close(*got, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("values", "returns", "want"),
    [([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], 1.0),
     ([5.0, 5.0, 5.0], [1.0, 2.0, 3.0], 0.0),
     ([0.0, 2.0, 4.0], [1.0, 2.0, 3.0], 0.0),  # errors 1, 0, -1: as wide as the returns
     ([1.0, 2.0, 2.0], [1.0, 2.0, 3.0], 2 / 3),  # Var(0, 0, 1) = 1/3 of Var(1, 2, 3) = 1
     ([3.0, 2.0, 1.0], [1.0, 2.0, 3.0], -3.0),  # errors -2, 0, 2
     ([1.0, 2.0, 3.0], [1.0, 1.0, 1.0], math.nan), ([1.0], [2.0], math.nan), ([], [], math.nan)],
)  # fmt: skip
def test_explained_variance_by_hand(values: list[float], returns: list[float], want: float) -> None:
    mask = torch.ones(len(values), dtype=torch.bool)
    known = {"values": torch.tensor(values), "returns": torch.tensor(returns), "mask": mask}
    state: Any = SimpleNamespace(**known, updates=Counter())
    got = critic_of(make_learner()).stats(state)["values/explained_variance"]
    assert got == pytest.approx(want, abs=1e-6, nan_ok=True)


def test_figures_of_a_step_are_those_of_its_start() -> None:
    learner = make_learner(minibatches=2, epochs=2)
    groups = random_groups()
    stats = learner.step(groups, version=0)
    state = valued(make_learner(), groups)
    assert (stats["values/mean"], stats["values/explained_variance"]) == (0.0, 0.0)
    assert 0 < stats["loss/value"] < float(state.returns.square().mean())
    assert stats["grad_norm/value"] > 0
    assert stats["updates/done"] == 4
    assert all(int(own["step"]) == 4 for own in critic_of(learner).optimizer.state.values())
    assert learner.step(groups, version=1)["values/mean"] != 0.0


def test_its_flops_are_counted() -> None:
    learner, groups = make_learner(tokens_per_microbatch=10**6), random_groups()
    chains = [chain for group in groups for chain in group.chains]
    lengths, rows = [len(c.token_ids) for c in chains], sum(c.sampled_count for c in chains)
    shapes = [learner.shape, replace(ModelShape.of(small_model()), head=32)]
    assert critic_of(learner).shape == shapes[1]
    # the policy's old logprobs come with its first minibatch; the critic's old values can't
    want = training_flops(shapes[0], lengths, rows) + training_flops(shapes[1], lengths, rows)
    assert learner.step(groups, version=0)["flops/train"] == pytest.approx(
        want + forward_flops(shapes[1], lengths, rows)
    )


def test_it_learns_a_constant_also_where_the_policy_has_no_signal() -> None:
    """Every chain is worth 1, so that advantages, once whitened, are all zero in the first step."""
    learner = make_learner(critic={"clip": 0.2})
    before = weights(learner)
    stats = learner.step(constant_reward(), version=0)
    assert (stats["updates/no_signal"], stats["updates/done"]) == (1, 0)
    assert stats["loss/value"] == 0.5
    assert torch.equal(weights(learner), before)
    for version in range(1, 40):
        stats = learner.step(constant_reward(), version)
    assert stats["values/mean"] == pytest.approx(1.0, abs=0.05)


def test_it_learns_what_depends_on_the_state_alone() -> None:
    """A chain's worth is told by its first token, k / 8: before that the mean is best, behind it the worth itself."""
    chains = [make_chain([1, 8 + k, 20, 21], 1, value=k / 8, name=str(k)) for k in range(8)]
    groups = [make_group([chain], chain.id) for chain in chains]
    learner = make_learner(critic={"warmup_steps": 1000, "learning_rate": 3e-3, "clip": 1.0})
    for version in range(150):
        stats = learner.step(groups, version)
    state = valued(learner, groups)
    first, later = state.values.view(8, 3)[:, 0], state.values.view(8, 3)[:, 1:]
    assert first.tolist() == pytest.approx([3.5 / 8] * 8, abs=0.1)
    torch.testing.assert_close(later, torch.arange(8.0).double()[:, None].expand(8, 2) / 8, atol=0.1, rtol=0)
    assert stats["values/explained_variance"] == pytest.approx(2 / 3, abs=0.05)  # a third of the tokens can't know


def test_the_warm_up_leaves_the_policy_bit_identical_and_its_schedule_waits() -> None:
    learner = make_learner(critic={"warmup_steps": 2}, minibatches=2, warmup_steps=3, decay="linear", total_steps=6)
    before, valued_before = weights(learner), critic_weights(learner)
    seen: list[dict[str, float]] = []
    for version in range(2):
        stats = learner.step(random_groups(seed=version), version, check=seen.append)
        assert torch.equal(weights(learner), before)
        assert (stats["updates/done"], stats["updates/no_signal"], stats["learning_rate"]) == (0, 0, 0.0)
        assert math.isnan(stats["loss/policy"])
        assert stats["entropy"] > 0
        assert stats["loss/value"] > 0
    assert len(seen) == 2  # the mismatch is looked at all the same
    assert not torch.equal(critic_weights(learner), valued_before)
    assert not learner.optimizer.state
    assert [learner.learning_rate(i) for i in range(3, 8)] == pytest.approx([0, 2.5e-3, 5e-3, 7.5e-3, 1e-2])
    assert learner.learning_rate(12) == 0.0
    assert learner.step(random_groups(seed=3), version=2)["updates/done"] == 2
    assert not torch.equal(weights(learner), before)


@pytest.mark.parametrize("whose", ["policy", "critic"])
def test_a_broken_gradient_of_either_skips_both(whose: str) -> None:
    learner = make_learner()
    model = learner.policy if whose == "policy" else critic_of(learner).model
    hook = next(model.parameters()).register_hook(lambda grad: grad * math.nan)
    before = torch.cat([weights(learner), critic_weights(learner)])
    for _ in range(2):
        stats = learner.step(random_groups(), version=0)
        assert (stats["updates/nonfinite"], stats["updates/done"]) == (1, 0)
    assert torch.equal(torch.cat([weights(learner), critic_weights(learner)]), before)
    assert all(p.grad is None for p in (*learner.policy.parameters(), *critic_of(learner).model.parameters()))
    with pytest.raises(Fault, match="not finite"):
        learner.step(random_groups(), version=0)
    hook.remove()
    learner.step(random_groups(), version=0)
    assert learner.nonfinite_in_a_row == 0
    assert not torch.equal(critic_weights(learner), before[len(weights(learner)) :])


@pytest.mark.parametrize("stop", [0, 1, 2], ids=["before any step", "while the critic warms up", "after"])
def test_resume_is_bit_for_bit(stop: int) -> None:
    settings: dict[str, Any] = {"minibatches": 2, "warmup_steps": 2, "decay": "cosine", "weight_decay": 0.1}
    settings["critic"] = {"warmup_steps": 1}
    straight, first, second = (make_learner(**settings) for _ in range(3))
    wake(second)  # whatever it was before is gone
    for version in range(4):
        straight.step(random_groups(seed=version), version)
    for version in range(stop):
        first.step(random_groups(seed=version), version)
    second.policy.load_state_dict(first.policy.state_dict())
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    for version in range(stop, 4):
        second.step(random_groups(seed=version), version)
    left, right = straight.state_dict(), second.state_dict()
    assert torch.equal(weights(straight), weights(second))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert any(name.startswith("critic.body.") for name in left)


def test_a_checkpoint_without_this_critic_is_refused() -> None:
    learner = make_learner()
    state = learner.state_dict()
    with pytest.raises(Fault, match=r"critic\.weight.*algorithm"):
        learner.load_state_dict({name: t for name, t in state.items() if name != "critic.weight"})
    with pytest.raises(Fault, match=r"critic\.bias"):
        learner.load_state_dict(state | {"critic.bias": torch.zeros(2)})


def test_advantages_in_the_kls_company() -> None:
    """With the KL in the reward, the critic learns what is left of it."""
    learner = make_learner({"kl_weight": 0.5, "kl_place": "reward"})
    with torch.no_grad():
        for parameter in learner.policy.parameters():
            parameter.mul_(1.2)
    stats = learner.step(random_groups(), version=0)
    assert stats["updates/done"] == 1
    assert math.isfinite(stats["loss/value"])


def ppo_config(tmp_path: Path, name: str, **extra: Any) -> Any:
    critic = {"learning_rate": 0.003, "warmup_steps": 1}
    return make_config(tmp_path, name, algorithm="ppo", critic=critic, **extra)


def test_two_steps_resume_two_steps_equal_four_in_a_run(tmp_path: Path) -> None:
    whole = run_once(ppo_config(tmp_path, "whole"))
    for done in (1, 2):  # in the middle of the warm-up's end, and behind it
        config = ppo_config(tmp_path, f"after-{done}", train={"steps": done})
        run = run_once(config)
        run_once(override_config(config, ["train.steps=4"]), resume=True)
        assert figures(run) == figures(whole)
        assert saved_weights(run, 4) == saved_weights(whole, 4)
        assert optimizer(run, 4) == optimizer(whole, 4)
    rows = figures(whole)
    assert all("values/explained_variance" in str(row) for row in rows)


def test_what_is_saved_as_the_model_does_not_hold_it(tmp_path: Path) -> None:
    from safetensors import safe_open

    run = run_once(ppo_config(tmp_path, "saved", train={"steps": 1}))
    base = run_once(make_config(tmp_path, "grpo", train={"steps": 1}))
    names = []
    for path in (run.checkpoints / "step-1", base.checkpoints / "step-1"):
        with safe_open(path / "model.safetensors", framework="pt") as file:
            names.append(set(file.keys()))
    assert names[0] == names[1]


def test_beside_adapters_all_of_the_critic_trains_and_one_chain_a_problem_is_enough(tmp_path: Path) -> None:
    from rl.build import build_learner

    model = {"lora": {"rank": 2}}
    config = ppo_config(tmp_path, "lora", model=model, rollout={"group_size": 1}, train={"steps": 2, "minibatches": 1})
    run = run_once(config)
    assert figures(run)[-1]["loss/value"] > 0
    before, after = build_learner(config), build_learner(config, str(run.checkpoints / "step-2"))
    after.load_state_dict(latest_state(run))
    assert len(critic_of(before).trained) == sum(1 for _ in critic_of(before).model.parameters())
    assert not torch.equal(critic_weights(before), critic_weights(after))
    assert all(".lora_" in name for name, _, owner in after.trained if owner is after.optimizer)


def latest_state(run: RunDir) -> dict[str, Tensor]:
    checkpoint = latest_checkpoint(run.checkpoints, print)
    assert checkpoint is not None
    return checkpoint.learner_state()
