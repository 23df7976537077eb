"""What an objective switches on in the learner: KL in the reward, a reference that follows, correction, one's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rewards.errors import Fault
from rl.advantages import Outcome, group_norm
from rl.batch import build_batch, pack
from rl.config import ObjectiveConfig, TrainConfig
from rl.learner import Learner
from rl.losses import Tokens, clip_loss
from rl.model import policy_logprobs
from rl.presets import resolve_objective
from rollout.types import Group
from tests.rl.chains import make_chain, make_group, random_groups, small_model
from tests.rl.test_learner import constant_reward, weights, with_scores


def make_learner(algorithm: str, objective: dict[str, Any] | None = None, ref_seed: int = 0, **train: Any) -> Learner:
    wanted = resolve_objective(algorithm, ObjectiveConfig.model_validate(objective or {}))
    settings = TrainConfig.model_validate({"threads": 1, "learning_rate": 1e-2, "tokens_per_microbatch": 64} | train)
    reference = small_model(seed=ref_seed) if wanted.needs_reference else None
    return Learner(small_model(), wanted, settings, temperature=1.0, total_steps=10, reference=reference)


def estimated(learner: Learner, groups: list[Group]) -> Any:
    state = learner.prepare(build_batch(groups, 0))
    for model in (learner.policy, learner.reference):
        if model is not None:
            learner._score(state, model, state.batch.sequences)
    learner.estimate(state)
    return state


# --- the KL in the reward


def test_the_kl_in_the_reward_lies_on_its_tokens_and_is_detached() -> None:
    """REINFORCE++: at each token the reward less weight x (log policy - log ref) from here on, then whitened."""
    learner = make_learner("reinforce++", {"kl_weight": 0.2}, ref_seed=5)
    state = estimated(learner, random_groups())
    want = []
    for s, reward in enumerate(state.batch.rewards.tolist()):
        rows = range(state.batch.row_bounds[s], state.batch.row_bounds[s + 1])
        gaps = [float(state.old[row] - state.ref[row]) for row in rows]
        want += [reward - 0.2 * math.fsum(gaps[t:]) for t in range(len(gaps))]
    returns = torch.tensor(want, dtype=torch.float64)
    returns = (returns - returns.mean()) / returns.std()
    torch.testing.assert_close(state.advantages.double(), returns, atol=1e-4, rtol=1e-4)
    assert not state.advantages.requires_grad


def test_the_kl_is_in_one_place_alone() -> None:
    """In the reward the loss has no KL term: with the same advantages its gradient is that of no KL at all."""
    gradients = []
    for objective in ({"kl_weight": 0.0}, {"kl_weight": 5.0}):
        learner = make_learner("reinforce++", objective, ref_seed=5)
        state = learner.prepare(build_batch(random_groups(), 0))
        learner._score(state, learner.policy, state.batch.sequences)
        if learner.reference is not None:
            learner._score(state, learner.reference, state.batch.sequences)
        state.advantages = torch.linspace(-1, 1, len(state.old))
        learner.accumulate(state, state.batch.sequences)
        gradients.append(torch.cat([p.grad.flatten() for p in learner.policy.parameters() if p.grad is not None]))
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("algorithm", "objective"),
    [
        ("reinforce++", {"kl_weight": 5.0}),
        ("grpo", {"kl_weight": 5.0, "kl_place": "reward"}),
        ("grpo", {"kl_weight": 5.0, "kl_estimator": "k2"}),
        ("grpo", {"kl_weight": 5.0}),
    ],
)
def test_wherever_it_is_it_pulls_to_the_reference(algorithm: str, objective: dict[str, Any]) -> None:
    learner = make_learner(algorithm, objective, ref_seed=5)
    kls = [learner.step(with_scores(learner, random_groups((8, 8), seed=i)), version=0)["kl/ref"] for i in range(12)]
    assert sum(kls[-3:]) < 0.9 * sum(kls[:3])


def test_a_kl_in_the_reward_that_is_zero_is_no_reason_for_a_step() -> None:
    learner = make_learner("reinforce++", weight_decay=0.1)
    before = weights(learner)
    stats = learner.step(constant_reward(), version=0)  # the policy is its reference, and all rewards are equal
    assert (stats["updates/no_signal"], stats["updates/done"]) == (1, 0)
    assert torch.equal(weights(learner), before)
    in_the_loss = make_learner("grpo", {"kl_weight": 0.1})
    assert in_the_loss.step(constant_reward(), version=0)["updates/done"] == 1


def test_off_policy_the_kl_in_the_loss_has_the_detached_ratio() -> None:
    """One token: weight x ratio x the gradient of k3, which is 1 - ref / policy."""
    learner = make_learner("grpo", {"kl_weight": 0.5})
    state = learner.prepare(build_batch([make_group([make_chain([1, 2], 1), make_chain([1, 3], 1, value=1.0)])], 0))
    current = torch.tensor([-1.0, -2.0], requires_grad=True)
    state.old, state.ref = torch.tensor([-1.3, -1.8]), torch.tensor([-1.1, -1.5])
    state.weights[:] = 0.5
    rows = torch.arange(2)
    loss = learner._loss(state, rows, current)  # advantages are zero: the KL is all there is
    ratio = (current.detach() - state.old).exp()
    kl = torch.expm1(state.ref - current.detach()) - (state.ref - current.detach())
    torch.testing.assert_close(loss.detach(), (0.5 * 0.5 * ratio * kl).sum())
    (gradient,) = torch.autograd.grad(loss, current)
    torch.testing.assert_close(gradient, 0.5 * 0.5 * ratio * (1 - (state.ref - current.detach()).exp()))


def test_only_trained_tokens_are_in_the_means_of_kl_and_entropy() -> None:
    """By hand through plain forward passes: inserted tokens and one without a sampler's logprob are in neither."""
    first = make_chain([3, 9, 4, 1, 5], 1, inserted=(2,), value=1.0)
    second = replace(make_chain([3, 2, 6, 5], 1), sampler_logprobs=[0.0, -3.0, math.nan, -3.0])
    learner = make_learner("grpo", {"kl_weight": 0.1}, ref_seed=5)
    kls, entropies = [], []
    for chain, trained in ((first, (1, 3, 4)), (second, (1, 3))):
        ids = torch.tensor([chain.token_ids])
        with torch.no_grad():
            policy, ref = (small_model(name="sdpa", seed=seed)(ids).logits[0].log_softmax(-1) for seed in (0, 5))
        for t in trained:
            gap = float(ref[t - 1, ids[0, t]] - policy[t - 1, ids[0, t]])
            kls.append(math.exp(gap) - 1 - gap)
            entropies.append(float(-(policy[t - 1].exp() * policy[t - 1]).sum()))
    stats = learner.step([make_group([first, second])], version=0)
    assert (stats["tokens/trained"], stats["tokens/missing"]) == (5, 1)
    assert stats["kl/ref"] == pytest.approx(sum(kls) / 5, rel=1e-4)
    assert stats["entropy"] == pytest.approx(sum(entropies) / 5, rel=1e-4)


# --- a reference that follows


def test_the_reference_follows_every_so_many_steps() -> None:
    learner = make_learner("grpo", {"kl_weight": 0.1, "reference_reset": 2})
    assert learner.reference is not None
    fixed = [p.clone() for p in learner.reference.parameters()]
    kls = [learner.step(with_scores(learner, random_groups(seed=i)), version=i)["kl/ref"] for i in range(4)]
    # Steps 1 and 2 against the start, 3 and 4 against the policy after step 2.
    assert kls[0] == pytest.approx(0.0, abs=1e-9)
    assert kls[1] > 1e-4
    assert kls[2] == pytest.approx(0.0, abs=1e-9)
    assert kls[3] > 1e-4
    assert all(
        torch.equal(a, b) for a, b in zip(learner.reference.parameters(), learner.policy.parameters(), strict=True)
    )
    assert not all(torch.equal(a, b) for a, b in zip(fixed, learner.reference.parameters(), strict=True))
    assert not any(p.requires_grad for p in learner.reference.parameters())


def test_a_reference_that_follows_is_in_the_state_and_one_that_does_not_is_not() -> None:
    objective = {"kl_weight": 0.1, "reference_reset": 2}
    straight, first, second = (make_learner("grpo", objective) for _ in range(3))
    for i in range(5):
        straight.step(random_groups(seed=i), version=i)
    for i in range(3):
        first.step(random_groups(seed=i), version=i)
    state = {name: value.clone() for name, value in first.state_dict().items()}
    second.policy.load_state_dict(first.policy.state_dict())
    second.load_state_dict(state)
    assert second.reference is not None
    assert first.reference is not None
    pairs = zip(first.reference.parameters(), second.reference.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    for i in range(3, 5):
        second.step(random_groups(seed=i), version=i)
    assert torch.equal(weights(straight), weights(second))
    fixed = make_learner("grpo", {"kl_weight": 0.1})
    assert not [name for name in fixed.state_dict() if name.startswith("reference.")]
    assert [name for name in state if name.startswith("reference.")]


# --- correction


def test_correction_is_counted_over_trained_tokens() -> None:
    """Of four tokens one is at a gap of ln 3, cut to 2 (mode token) or left out (token_mask); one has no logprob."""
    chains = [make_chain([1, 2, 3], 1, value=1.0), make_chain([1, 4, 5], 1)]
    learner = make_learner("grpo", {"correction": "token"})
    (group,) = with_scores(learner, [make_group(chains)])
    first, second = group.chains
    shifted = replace(first, sampler_logprobs=[0.0, first.sampler_logprobs[1] - math.log(3), first.sampler_logprobs[2]])
    lost = replace(second, sampler_logprobs=[0.0, math.nan, second.sampler_logprobs[2]])
    groups = [make_group([shifted, lost])]
    stats = learner.step(groups, version=0)
    assert stats["correction/weight"] == pytest.approx((2 + 1 + 1) / 3, abs=1e-5)
    assert (stats["correction/truncated"], stats["correction/rejected"]) == (pytest.approx(1 / 3), 0.0)
    assert (stats["tokens/trained"], stats["tokens/missing"]) == (3, 1)
    stats = make_learner("grpo", {"correction": "token_mask"}).step(groups, version=0)
    assert stats["correction/weight"] == pytest.approx(2 / 3, abs=1e-5)
    assert (stats["correction/truncated"], stats["correction/rejected"]) == (0.0, pytest.approx(1 / 3))
    assert not [name for name in make_learner("grpo").step(groups, version=0) if name.startswith("correction")]


def test_a_rejected_token_moves_nothing_but_stays_in_the_denominator() -> None:
    """Leaving out by correction is a weight of 0, not a shorter chain: the others weigh as before."""
    chains = [make_chain([1, 2, 3], 1, value=1.0), make_chain([1, 4, 5], 1)]
    learner = make_learner("grpo", {"correction": "token_mask"})
    (group,) = with_scores(learner, [make_group(chains)])
    first, second = group.chains
    far = replace(first, sampler_logprobs=[0.0, first.sampler_logprobs[1] - math.log(3), first.sampler_logprobs[2]])
    state = estimated(learner, [make_group([far, second])])
    learner.accumulate(state, state.batch.sequences)
    assert state.weights.tolist() == [0.25] * 4
    current = state.old.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(learner._loss(state, torch.arange(4), current), current)
    torch.testing.assert_close(gradient, -state.advantages * torch.tensor([0.0, 1.0, 1.0, 1.0]) / 4)


# --- one's own


def with_loss(function: Callable[..., Any]) -> Learner:
    learner = make_learner("grpo")
    learner.loss = function
    return learner


def test_a_plain_tensor_is_enough_for_a_loss_of_ones_own() -> None:
    def own(tokens: Tokens, low: float, high: float) -> Tensor:
        return clip_loss(tokens, low, high)[0]

    learner, usual = with_loss(own), make_learner("grpo")
    stats, want = (each.step(random_groups(), version=0) for each in (learner, usual))
    assert torch.equal(weights(learner), weights(usual))
    assert (stats["clip_fraction"], stats["loss/policy"]) == (0.0, want["loss/policy"])


@pytest.mark.parametrize("shape", [(), (1,), (3, 3)])
def test_a_loss_of_the_wrong_shape_is_a_fault_in_a_line(shape: tuple[int, ...]) -> None:
    learner = with_loss(lambda tokens, low, high: tokens.current.sum() * torch.ones(shape))
    before = weights(learner)
    with pytest.raises(Fault, match=r"objective\.loss=clip gave .* numbers for \d+ tokens") as caught:
        learner.step(random_groups(), version=0)
    assert "\n" not in str(caught.value)
    assert torch.equal(weights(learner), before)


@pytest.mark.parametrize(
    "estimator",
    [
        lambda outcome: outcome.rewards[:3],
        lambda outcome: outcome.rewards[:, None],
        lambda outcome: outcome.rewards * math.nan,
        lambda outcome: outcome.rewards.sum(),
    ],
)
def test_an_advantage_of_the_wrong_shape_is_a_fault_in_a_line(estimator: Callable[[Outcome], Tensor]) -> None:
    learner = make_learner("grpo")
    learner.estimator = estimator
    with pytest.raises(Fault, match=r"objective\.advantage=group_norm must give finite numbers") as caught:
        learner.step(random_groups(), version=0)
    assert "\n" not in str(caught.value)


def test_an_advantage_of_ones_own_may_be_a_chains_or_a_tokens() -> None:
    learners = [make_learner("grpo") for _ in range(2)]
    learners[1].estimator = lambda outcome: group_norm(outcome)[outcome.sequence_ids]
    for learner in learners:
        learner.step(random_groups(), version=0)
    assert torch.equal(*map(weights, learners))


# --- mixtures of experts

EXPERTS: dict[str, Any] = {
    "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "output_router_logits": True,
}  # fmt: skip


@pytest.mark.parametrize("arch", ["mixtral", "qwen3_moe"])
def test_no_auxiliary_loss_of_experts_is_ever_added(arch: str) -> None:
    """The router's balancing loss would pull against the reward: the gradient is free of its coefficient."""
    found = []
    batch = build_batch(random_groups(), 0)
    for coefficient in (0.0, 100.0):
        model = small_model(arch, router_aux_loss_coef=coefficient, **EXPERTS)
        settings = TrainConfig(threads=1, tokens_per_microbatch=64)
        objective = resolve_objective("grpo", ObjectiveConfig())
        learner = Learner(model, objective, settings, temperature=1.0, total_steps=1)
        state = learner.prepare(batch)
        learner.estimate(state)
        learner.accumulate(state, batch.sequences, fill_old=True)
        found.append(torch.cat([p.grad.flatten() for p in learner.policy.parameters() if p.grad is not None]))
        routers = [p.grad for name, p in learner.policy.named_parameters() if name.endswith("gate.weight")]
        assert routers
        assert all(grad is not None and grad.abs().max() > 0 for grad in routers)  # it learns, from the reward
    assert torch.equal(*found)
    ids = torch.tensor([[1, 2, 3, 4]])
    model = small_model(arch, name="eager", router_aux_loss_coef=100.0, **EXPERTS)
    with torch.no_grad():
        assert model(input_ids=ids, labels=ids).loss > 100  # what transformers adds where it makes the loss
        (micro,) = pack(batch, batch.sequences[:1], 64)
        assert policy_logprobs(small_model(arch, **EXPERTS), micro, batch.targets[micro.rows], 1.0)[0].max() < 0
