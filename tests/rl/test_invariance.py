"""How a minibatch is cut into micro-batches, packed or padded, must not change its gradient.

The reference is written a second time and slowly: one padded forward pass through plain sdpa with an attention mask,
then a loop over chains and tokens.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rl.batch import TrainBatch, build_batch, pack
from rl.config import ObjectiveConfig, TrainConfig
from rl.correction import CORRECTIONS
from rl.learner import Learner, StepState
from rl.presets import ROWS, Objective, resolve_objective
from rollout.types import Chain
from tests.rl.chains import random_groups, small_model

GROUPS = random_groups((4, 4), seed=4)
CHAINS = [chain for group in GROUPS for chain in group.chains]
TEMPERATURE = 0.7
CUTS = {"1x8": 10**6, "2x4": 78, "4x2": 44, "8x1": 1}
"""Micro-batches x chains in each -> tokens_per_microbatch."""


def make_learner(dtype: torch.dtype, tokens: int, objective: Objective, checkpointing: bool = False) -> Learner:
    reference = small_model(seed=5).to(dtype) if objective.needs_reference else None
    train = TrainConfig(tokens_per_microbatch=tokens, threads=1, gradient_checkpointing=checkpointing)
    return Learner(
        small_model().to(dtype), objective, train, temperature=TEMPERATURE, total_steps=1, reference=reference,
        max_tokens=30,
    )  # fmt: skip


def scored(learner: Learner, batch: TrainBatch) -> StepState:
    """A step's state after two changes of the weights, so that ratios are not 1 and some are clipped."""
    state = learner.prepare(batch)
    learner._score(state, learner.policy, batch.sequences)
    if learner.reference is not None:
        learner._score(state, learner.reference, batch.sequences)
    learner.estimate(state)
    generator = torch.Generator().manual_seed(0)
    state.old += torch.randn(state.old.shape, generator=generator, dtype=torch.float64).to(state.old) * 0.3
    return state


def learner_gradient(dtype: torch.dtype, tokens: int, objective: Objective, checkpointing: bool = False) -> Tensor:
    learner = make_learner(dtype, tokens, objective, checkpointing)
    batch = build_batch(GROUPS, 0)
    learner.accumulate(scored(learner, batch), batch.sequences)
    return flat_gradient(learner.policy)


def composed_gradient(tokens: int, objective: Objective) -> Tensor:
    """Of rewards in two parts, from a sampler that is near in every second chain and not so near in the others."""
    learner = make_learner(torch.float64, tokens, objective)
    batch = build_batch(GROUPS, 0)
    state = scored(learner, replace(batch, parts=torch.stack([batch.rewards, batch.rewards.cumsum(0) % 3], -1)))
    noise = torch.randn(state.old.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    near = (state.old + noise * torch.where(batch.sequence_ids % 2 == 0, 1e-3, 0.5)).float()
    state.batch = replace(state.batch, sampler_logprobs=near)
    learner.accumulate(state, batch.sequences)
    return flat_gradient(learner.policy)


def flat_gradient(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def padded_logprobs(model: torch.nn.Module, chains: list[Chain]) -> list[Tensor]:
    """Logprobs of every token but the first of each chain, from one right-padded forward pass."""
    longest = max(len(c.token_ids) for c in chains)
    ids = torch.tensor([c.token_ids + [0] * (longest - len(c.token_ids)) for c in chains])
    mask = torch.tensor([[1] * len(c.token_ids) + [0] * (longest - len(c.token_ids)) for c in chains])
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits / TEMPERATURE
    logprobs = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    return [row[: len(c.token_ids) - 1] for row, c in zip(logprobs, chains, strict=True)]


def padded_gradient(dtype: torch.dtype, objective: Objective) -> Tensor:
    model, reference = small_model(name="sdpa").to(dtype), small_model(name="sdpa", seed=5).to(dtype)
    batch = build_batch(GROUPS, 0)
    state = scored(make_learner(dtype, 10**6, objective), batch)
    old = state.old
    row, chain_losses, token_losses = 0, [], []
    with torch.no_grad():
        ref = padded_logprobs(reference, CHAINS)
    for s, (chain, logprobs) in enumerate(zip(CHAINS, padded_logprobs(model, CHAINS), strict=True)):
        losses = []
        for t, sampled in enumerate(chain.sampled):
            if not sampled:
                continue
            ratio, advantage = (logprobs[t - 1] - old[row]).exp(), state.advantages[row]
            limited = ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high)
            gap = ref[s][t - 1] - logprobs[t - 1]
            weight = 1.0
            if objective.correction == "token":
                weight = min(math.exp(float(old[row]) - float(batch.sampler_logprobs[row])), 2.0)
            policy_loss = -torch.minimum(ratio * advantage, limited * advantage) * weight
            losses.append(policy_loss + objective.kl_weight * ratio.detach() * (gap.exp() - gap - 1))
            row += 1
        chain_losses.append(torch.stack(losses).mean())
        token_losses += losses
    means = chain_losses if objective.aggregation == "sequence_mean" else token_losses
    torch.stack(means).mean().backward()
    return flat_gradient(model)


OBJECTIVES = {
    "grpo": resolve_objective("grpo", ObjectiveConfig()),
    "token mean, kl, correction": resolve_objective(
        "grpo", ObjectiveConfig(aggregation="token_mean", kl_weight=0.1, correction="token", clip_high=0.28)
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("cut", CUTS)
def test_gradient_in_float64(name: str, cut: str) -> None:
    objective = OBJECTIVES[name]
    got, want = learner_gradient(torch.float64, CUTS[cut], objective), padded_gradient(torch.float64, objective)
    assert want.abs().max() > 0.1
    torch.testing.assert_close(got, want, atol=1e-10, rtol=0)


@pytest.mark.parametrize("cut", CUTS)
def test_gradient_in_float32(cut: str) -> None:
    objective = OBJECTIVES["token mean, kl, correction"]
    got, want = learner_gradient(torch.float32, CUTS[cut], objective), padded_gradient(torch.float32, objective)
    assert (got - want).norm() / want.norm() < 1e-5


def preset(name: str, **overrides: Any) -> Objective:
    objective = resolve_objective(name, ObjectiveConfig(**overrides))
    # Advantages are made before micro-batches: PPO's whitened ones, of a critic that says 0, stand for any critic's.
    return replace(objective, advantage="global_norm") if objective.needs_critic else objective


MORE = {f"grpo, {mode}": preset("grpo", correction=mode) for mode in CORRECTIONS} | {
    "gspo, token mean, k2": preset("gspo", aggregation="token_mean", kl_weight=0.1, kl_estimator="k2", clip_high=0.3),
    "dapo, k3 in the reward": preset("dapo", kl_weight=0.1, kl_place="reward", kl_estimator="k3"),
}


@pytest.mark.parametrize("name", [*ROWS, *MORE])
def test_no_cut_changes_the_gradient_of_any_preset(name: str) -> None:
    objective = MORE[name] if name in MORE else preset(name)
    whole, *others = (composed_gradient(tokens, objective) for tokens in CUTS.values())
    assert whole.abs().max() > 1e-4
    for other in others:
        torch.testing.assert_close(other, whole, atol=1e-10, rtol=0)


def test_gradient_with_checkpointing() -> None:
    objective = OBJECTIVES["grpo"]
    plain, again = (learner_gradient(torch.float64, 44, objective, checkpointing=c) for c in (False, True))
    torch.testing.assert_close(plain, again, atol=1e-12, rtol=0)


def test_the_cuts_are_what_they_say() -> None:
    batch = build_batch(GROUPS, 0)
    for name, tokens in CUTS.items():
        micros, chains = map(int, name.split("x"))
        assert [len(m.lengths) for m in pack(batch, batch.sequences, tokens)] == [chains] * micros
