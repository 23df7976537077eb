from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from rewards.errors import Fault
from rl.batch import build_batch
from rl.config import ObjectiveConfig, TrainConfig
from rl.learner import Learner, StepStats
from rl.presets import resolve_objective
from rollout.types import Chain, Group
from tests.rl.chains import VOCAB, make_chain, make_group, random_groups, small_model


def make_learner(objective: dict[str, Any] | None = None, total_steps: int = 10, **train: Any) -> Learner:
    wanted = resolve_objective("grpo", ObjectiveConfig(**(objective or {})))
    settings = TrainConfig(**({"threads": 1, "learning_rate": 1e-2, "tokens_per_microbatch": 64} | train))
    reference = small_model() if wanted.needs_reference else None
    return Learner(small_model(), wanted, settings, temperature=1.0, total_steps=total_steps, reference=reference)


def weights(learner: Learner) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in learner.policy.parameters()])


def with_scores(learner: Learner, groups: list[Group]) -> list[Group]:
    """The same groups as if the learner's own weights had sampled them."""

    def exact(chain: Chain) -> Chain:
        values = iter(learner.score_logprobs([chain])[0].tolist())
        return replace(chain, sampler_logprobs=[next(values) if s else 0.0 for s in chain.sampled])

    return [replace(group, chains=[exact(chain) for chain in group.chains]) for group in groups]


def constant_reward(value: float = 1.0) -> list[Group]:
    return [make_group([make_chain([1, 2, 3], 1, value=value), make_chain([1, 4, 5], 1, value=value)])]


def test_a_rewarded_token_becomes_likelier() -> None:
    learner = make_learner(minibatches=2, epochs=2)
    good, bad = make_chain([1, 2], 1, value=1.0), make_chain([1, 3], 1)
    groups = [make_group([good, bad], "a"), make_group([good, bad], "b")]
    before = [float(x) for x in learner.score_logprobs([good, bad])]
    stats = learner.step(groups, version=0)
    after = [float(x) for x in learner.score_logprobs([good, bad])]
    assert after[0] > before[0] + 0.05
    assert after[1] < before[1] - 0.05
    assert stats["updates/done"] == 4


def test_figures_of_a_step() -> None:
    learner = make_learner(minibatches=1)
    groups = with_scores(learner, random_groups())
    trained = sum(chain.sampled_count for group in groups for chain in group.chains)
    stats = learner.step(groups, version=0)
    assert stats["mismatch_kl/fresh"] < 1e-12
    assert stats["mismatch/abs_max"] < 1e-5
    assert (stats["ratio/max"], stats["clip_fraction"], stats["approx_kl"]) == (1.0, 0.0, 0.0)
    assert abs(stats["loss/policy"]) < 1e-3  # at ratio 1 the loss is -mean advantage, which is 0 for equal-sized halves
    assert 0 < stats["entropy"] < math.log(VOCAB)
    assert stats["tokens/trained"] == trained
    assert (stats["staleness"], stats["samples/dropped"], stats["groups/no_variance"]) == (0.0, 0, 0)
    assert stats["grad_norm"] > 0
    assert stats["flops/train"] > 0
    assert 0 < stats["mfu"] < 1


def test_mismatch_sees_a_sampler_that_differs_and_only_on_fresh_tokens() -> None:
    learner = make_learner()
    (group,) = with_scores(learner, random_groups((4,)))
    shifted = [replace(c, sampler_logprobs=[x - 0.1 for x in c.sampler_logprobs]) for c in group.chains]
    fresh, stale = make_group(shifted), make_group([replace(c, versions=[(c.prompt_len, -2)]) for c in group.chains])
    seen: list[StepStats] = []
    stats = learner.step([fresh, stale], version=0, check=seen.append)
    assert stats["mismatch/abs_mean"] == pytest.approx(0.1, abs=1e-5)
    assert stats["mismatch_kl/fresh"] == pytest.approx(math.expm1(0.1) - 0.1, rel=1e-3)  # old / sampler = exp(0.1)
    assert stats["staleness"] == pytest.approx(1.0)  # half the tokens are two versions old
    assert seen == [{name: stats[name] for name in seen[0]}]


@pytest.mark.parametrize("groups", [random_groups(), constant_reward()], ids=["signal", "no signal"])
def test_a_check_that_raises_leaves_the_weights_alone(groups: list[Group]) -> None:
    def refuse(stats: StepStats) -> None:
        raise Fault("no")

    learner = make_learner(minibatches=2)
    before = weights(learner)
    with pytest.raises(Fault, match="no"):
        learner.step(groups, version=0, check=refuse)
    assert torch.equal(weights(learner), before)
    assert all(p.grad is None for p in learner.policy.parameters())


def test_old_logprobs_are_those_of_the_start_of_the_batch() -> None:
    """With two minibatches the second one's ratio is against the weights before the first update, not after."""
    learner = make_learner(minibatches=2, learning_rate=3e-2)
    assert learner.step(random_groups((4, 4)), version=0)["ratio/max"] > 1.01
    still = make_learner(minibatches=2, learning_rate=0.0)
    assert still.step(random_groups((4, 4)), version=0)["ratio/max"] == pytest.approx(1.0, abs=1e-5)


def test_nothing_to_learn_moves_nothing_even_with_momentum() -> None:
    learner = make_learner()
    learner.step(random_groups(), version=0)
    before = weights(learner)
    stats = learner.step(constant_reward(), version=1)
    assert torch.equal(weights(learner), before)
    assert (stats["groups/no_variance"], stats["updates/no_signal"], stats["updates/done"]) == (1, 1, 0)
    assert math.isfinite(stats["mismatch/abs_mean"]) == (stats["staleness"] == 0.0) is False  # version 0 is stale now
    assert math.isnan(stats["loss/policy"])
    assert stats["entropy"] > 0


def test_an_empty_step_is_legitimate() -> None:
    learner = make_learner()
    before = weights(learner)
    stats = learner.step([make_group([make_chain([1, 2], 1, value=None), make_chain([1, 2], 1)])], version=0)
    assert torch.equal(weights(learner), before)
    assert (stats["samples/dropped"], stats["tokens/trained"]) == (1, 0)


def test_kl_pulls_back_to_the_reference() -> None:
    learner = make_learner({"kl_weight": 1.0})
    assert learner.step(random_groups(), version=0)["kl/ref"] == pytest.approx(0.0, abs=1e-9)
    with torch.no_grad():
        for parameter in learner.policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
    kls = [learner.step(constant_reward(), version=0)["kl/ref"] for _ in range(5)]
    assert kls[0] > 0.01
    assert kls[-1] < kls[0]


def test_a_reference_that_is_needed_must_be_given() -> None:
    with pytest.raises(ValueError, match="reference"):
        Learner(
            small_model(),
            resolve_objective("grpo", ObjectiveConfig(kl_weight=0.1)),
            TrainConfig(),
            temperature=1.0,
            total_steps=1,
        )


def test_a_missing_sampler_logprob_drops_its_token_from_mean_and_count() -> None:
    """Two chains, the first with one of its two tokens missing: the gradient is that of the chain without it."""
    lost = make_chain([1, 2, 3], 1, value=1.0)
    lost = replace(lost, sampler_logprobs=[0.0, -3.0, math.nan])
    learner = make_learner({"correction": "token"})
    stats = learner.step([make_group([lost, make_chain([1, 4, 5], 1)])], version=0)
    assert stats["tokens/trained"] == 3
    assert stats["tokens/missing"] == 1
    assert math.isfinite(stats["loss/policy"])


def test_broken_gradients_are_skipped_counted_and_stop_the_run() -> None:
    learner = make_learner()
    groups = random_groups()
    parameter = next(learner.policy.parameters())
    hook = parameter.register_hook(lambda grad: grad * math.nan)
    before = weights(learner)
    for _ in range(2):
        assert learner.step(groups, version=0)["updates/nonfinite"] == 1
    assert torch.equal(weights(learner), before)
    hook.remove()
    assert learner.step(groups, version=0)["updates/done"] == 1  # one good step starts the count again
    parameter.register_hook(lambda grad: grad * math.nan)
    for _ in range(2):
        learner.step(groups, version=0)
    with pytest.raises(Fault, match="not finite"):
        learner.step(groups, version=0)


def test_resume_is_bit_for_bit() -> None:
    settings: dict[str, Any] = {"minibatches": 2, "warmup_steps": 3, "decay": "cosine", "weight_decay": 0.1}
    straight = make_learner(**settings)
    for seed in range(4):
        straight.step(random_groups(seed=seed), version=seed)
    first = make_learner(**settings)
    for seed in range(2):
        first.step(random_groups(seed=seed), version=seed)
    second = make_learner(**settings)
    second.policy.load_state_dict(first.policy.state_dict())
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    for seed in range(2, 4):
        second.step(random_groups(seed=seed), version=seed)
    assert torch.equal(weights(straight), weights(second))
    assert straight.state_dict().keys() == second.state_dict().keys()


def test_state_before_the_first_update_and_of_another_model() -> None:
    fresh, used = make_learner(), make_learner()
    used.load_state_dict(fresh.state_dict())
    used.step(random_groups(), version=0)
    state = used.state_dict()
    del state["optimizer.exp_avg.model.norm.weight"]
    with pytest.raises(Fault, match=r"model\.norm\.weight"):
        fresh.load_state_dict(state)


def test_the_same_inputs_give_the_same_bits() -> None:
    runs = []
    for _ in range(2):
        learner = make_learner(minibatches=2, epochs=2)
        learner.step(random_groups((4, 4, 4)), version=0)
        runs.append(weights(learner))
    assert torch.equal(*runs)


@pytest.mark.parametrize(
    ("decay", "want"),
    [("none", [1 / 3, 2 / 3, 1, 1, 1, 1]), ("linear", [1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25]),
     ("cosine", [1 / 3, 2 / 3, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])],
)  # fmt: skip
def test_learning_rate(decay: str, want: list[float]) -> None:
    learner = make_learner(total_steps=3, minibatches=2, warmup_steps=2, decay=decay, learning_rate=1.0)
    assert [learner.learning_rate(i) for i in range(6)] == pytest.approx(want)
    assert learner.learning_rate(6) == (1.0 if decay == "none" else pytest.approx(0.0))


def test_skipped_updates_still_move_the_schedule() -> None:
    learner = make_learner(total_steps=2, minibatches=2, decay="linear", learning_rate=1e-3)
    learner.step(constant_reward(), version=0)
    assert learner.step(random_groups(), version=0)["learning_rate"] == pytest.approx(1e-3 / 4)


def test_scores_match_what_training_uses_and_take_a_temperature() -> None:
    learner = make_learner()
    groups = random_groups()
    chains = [chain for group in groups for chain in group.chains]
    scores = learner.score_logprobs(chains)
    assert [len(x) for x in scores] == [chain.sampled_count for chain in chains]
    state = learner.prepare(build_batch(groups, 0))
    learner._score(state, learner.policy, state.batch.sequences)
    torch.testing.assert_close(torch.cat(scores), state.old, atol=0, rtol=0)
    assert not torch.allclose(torch.cat(learner.score_logprobs(chains, 0.7)), state.old)
