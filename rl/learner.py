"""One batch of scored chains -> optimizer steps -> figures. accelerate lives here; the loop decides what comes when.
Three policies: the *sampler* made the tokens, *old* is this model at the start of the batch, *current* is it now."""

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeAlias, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor
from transformers import PreTrainedModel

from rewards.errors import BadInput, Fault
from rl.advantages import Outcome, whiten
from rl.batch import MicroBatch, TrainBatch, build_batch, flatten, split_minibatches
from rl.config import CriticConfig, TrainConfig
from rl.correction import correct
from rl.critic import Critic
from rl.flops import ModelShape, forward_flops, measure_peak_gflops, training_flops
from rl.kl import ESTIMATORS, k3
from rl.losses import Tokens, aggregate, diagnose, masked, token_weights
from rl.model import Scorer
from rl.parallel import ONE, Ranks, full, like
from rl.presets import GROUPLESS, Objective, find
from rollout.types import Chain, Group

StepStats: TypeAlias = dict[str, float]
"""Figures of one step under their names in metrics.jsonl; NaN = there was nothing to measure it on."""
Check: TypeAlias = Callable[[StepStats], None]
"""Gets the mismatch figures before any optimizer step, and may raise."""

MAX_NONFINITE = 3  # optimizer steps in a row with a loss or gradient that isn't finite, after which the run stops


@dataclass
class StepState:
    """One step's batch and what is known of its rows, [N] each."""

    batch: TrainBatch
    mask: Tensor  # bool: rows that can be trained
    old: Tensor  # logprobs of the weights at the start of the batch
    entropy: Tensor  # of the same weights, nats
    ref: Tensor | None  # logprobs of the reference
    advantages: Tensor  # zeros until they are estimated
    weights: Tensor  # float64, each row's share in its minibatch's loss
    values: Tensor  # the critic's, at the start of the batch
    returns: Tensor  # what they should have been
    kl_term: bool = False  # whether the loss has a KL to the reference
    frozen: bool = False  # whether the critic alone learns
    ratio_max: float = 0.0  # the largest current / old that a trained token had
    tally: Any = field(default_factory=Counter)  # sums over this rank's micro-batches, tensors on their device
    updates: Any = field(default_factory=Counter)  # the same over optimizer steps, alike on all ranks

    def has_signal(self, part: Sequence[int]) -> bool:
        """Whether some chains can move the policy: a KL term, or an advantage that is not zero."""
        rows = self.batch.rows_of(part)
        rows = rows[self.mask[rows]]
        return not self.frozen and (bool(self.advantages[rows].any()) or (self.kl_term and len(rows) > 0))


class Learner:
    """Owns the policy's weights and the optimizer."""

    def __init__(
        self,
        policy: PreTrainedModel,
        objective: Objective,
        train: TrainConfig,
        *,
        temperature: float,
        total_steps: int,
        max_tokens: int = 1,
        reference: PreTrainedModel | None = None,
        critic: tuple[PreTrainedModel, CriticConfig] | None = None,
        part_weights: Sequence[tuple[str, float]] = (),
        dtype: str = "float32",
        ranks: Ranks = ONE,
    ) -> None:
        """`total_steps` is the whole run's, for the decay; `reference` is needed where the objective has a KL term,
        `critic`, the model that it begins from, where advantages are against values; `max_tokens` is the cap of a
        chain, `part_weights` (name, weight) of the parts of a composed reward.
        With dtype bfloat16 the policy's trained parameters are given in fp32 and it computes under autocast."""
        if objective.needs_reference and reference is None:
            raise ValueError("objective.kl_weight > 0 needs a reference model")
        if objective.needs_critic and critic is None:
            raise ValueError("objective.advantage=gae needs a critic")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(train.threads or max(1, (cores or 1) // ranks.size))
        self.objective, self.train, self.temperature = objective, train, temperature
        self.max_tokens, self.part_weights = max_tokens, dict(part_weights)
        self.loss, self.estimator = find("loss", objective.loss), find("advantage", objective.advantage)
        self.total_updates = total_steps * train.epochs * train.minibatches
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(), mixed_precision="bf16" if dtype == "bfloat16" else "no",
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        )  # fmt: skip
        if self.accelerator.num_processes != ranks.size:
            raise BadInput(f"{ranks.size} ranks were asked for, accelerate sees {self.accelerator.num_processes}")
        if train.gradient_checkpointing:
            policy.gradient_checkpointing_enable({"use_reentrant": False})
        self.shape = ModelShape.of(policy)
        self.policy, self.reference, self.ranks = policy.train(), reference, ranks
        scorer, self.optimizer = ranks.ready(Scorer(policy), train.learning_rate, train.weight_decay, self.accelerator)
        self.scorers = {policy: scorer}
        if reference is not None:
            reference.to(self.accelerator.device).eval().requires_grad_(False)
            self.scorers[reference] = ranks.ready(Scorer(reference), 0.0, 0.0, self.accelerator)[0]
        self.critic = Critic(*critic, train, self.accelerator, ranks) if critic else None
        self.trained = [(name, p, self.optimizer) for name, p in policy.named_parameters() if p.requires_grad]
        self.trained += self.critic.trained if self.critic else []
        warmup = critic[1].warmup_steps if critic else 0
        self.held_updates = warmup * train.epochs * train.minibatches  # of the policy, until the critic is warm
        self.updates_due = 0  # optimizer steps that the schedule has seen, skipped ones included
        self.nonfinite_in_a_row = 0

    @cached_property
    def peak_gflops(self) -> float:
        """Matrix-multiplication speed of this machine, measured once."""
        half = self.accelerator.mixed_precision == "bf16"
        return measure_peak_gflops(device=self.accelerator.device, dtype=torch.bfloat16 if half else torch.float32)

    def step(self, groups: Sequence[Group], version: int, check: Check | None = None) -> StepStats:
        """Train on one step's scored groups; `version` is the label of the weights held now.
        `check` gets the mismatch figures once, before any optimizer step: when it raises, no weight has moved.
        Raises Fault after MAX_NONFINITE optimizer steps in a row without a finite loss and gradient."""
        with self.ranks.together("step", version):
            return self._step(groups, version, check)

    def _step(self, groups: Sequence[Group], version: int, check: Check | None) -> StepStats:
        start = time.perf_counter()
        wanted, company = self.objective, 1 if self.objective.advantage in GROUPLESS else 2
        rules = (company, wanted.no_variance, wanted.overlong, self.max_tokens, list(self.part_weights))
        state = self.prepare(self.ranks.share(build_batch(groups, version, *rules)))
        parts = split_minibatches(state.batch, self.train.minibatches)
        free: Sequence[int] = []
        if self.critic is not None:
            self.critic.score(state)
            state.frozen = self.updates_due < self.held_updates
        if not wanted.kl_in_reward:
            self.estimate(state)
            # The first minibatch meets the weights of the batch's start: its own logprobs are the old ones, for free.
            free = parts[0] if parts and state.has_signal(parts[0]) else []
        self._score(state, self.policy, sorted(set(state.batch.sequences) - set(free)))
        if self.reference is not None:
            self._score(state, self.reference, state.batch.sequences)
        if wanted.kl_in_reward:
            self.estimate(state)
        check = self.ranks.agreed(check or (lambda stats: None))
        if not free:
            check(mismatch(state))
        first_update = self.updates_due
        for epoch in range(self.train.epochs):
            for i, part in enumerate(parts):
                self.updates_due = first_update + epoch * self.train.minibatches + i
                self._update(state, part, check if part is free and epoch == 0 else None)
        self.updates_due = first_update + self.train.epochs * self.train.minibatches
        if self.reference is not None and wanted.reference_reset and (version + 1) % wanted.reference_reset == 0:
            self.reference.load_state_dict(self.policy.state_dict())
        return self._stats(state, time.perf_counter() - start)

    def learning_rate(self, update: int) -> float:
        """The learning rate of optimizer step `update` (from 0): linear warm-up, then decay to 0 at the run's end.
        Both begin when the critic is warm."""
        peak, warmup, held = self.train.learning_rate, self.train.warmup_steps, self.held_updates
        if update < held + warmup:
            return peak * max(0, update - held + 1) / (warmup + 1)
        done = min(1.0, (update - held - warmup) / max(1, self.total_updates - held - warmup))
        shares = {"none": 1.0, "linear": 1.0 - done, "cosine": (1.0 + math.cos(math.pi * done)) / 2}
        return peak * shares[self.train.decay]

    def score_logprobs(self, chains: Sequence[Chain], temperature: float | None = None) -> list[Tensor]:
        """The policy's logprobs of each chain's sampled tokens, [n] on the CPU, at the run's temperature or another."""
        state = self.prepare(flatten(chains, version=0))
        self._score(state, self.policy, state.batch.sequences, temperature)
        return list(torch.split(state.old.cpu(), torch.tensor(state.batch.row_bounds).diff().tolist()))

    def state_dict(self) -> dict[str, Tensor]:
        """Everything but the weights that the next step depends on, as named tensors for a safetensors file."""
        found = {"learner.counters": torch.tensor([self.updates_due, self.nonfinite_in_a_row])}
        for name, parameter, optimizer in self.trained:
            own = optimizer.state.get(parameter, {})
            found |= {f"optimizer.{key}.{name}": value for key, value in own.items()}
        found |= {name: parameter for name, parameter, _ in self.critic.trained} if self.critic else {}
        if self.reference is not None and self.objective.reference_reset:
            found |= {f"reference.{name}": parameter for name, parameter in self.reference.named_parameters()}
        with self.ranks.gathering("state_dict"):
            return {name: self.ranks.whole(value.detach()) for name, value in found.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave. Raises Fault where it belongs to another model."""
        # there is none before the first step, which the critic may take earlier
        updated = {key.startswith("optimizer.step.critic.") for key in state if key.startswith("optimizer.step.")}
        for name, parameter, optimizer in self.trained:
            if name.startswith("critic.") not in updated:
                continue
            keys = {key: f"optimizer.{key}.{name}" for key in ("step", "exp_avg", "exp_avg_sq")}
            found = {key: state[full].to(parameter.device, copy=True) for key, full in keys.items() if full in state}
            if len(found) < len(keys) or found["exp_avg"].shape != parameter.shape:
                raise Fault(f"the optimizer state of {name} is not this model's; resume with the model of the run")
            optimizer.state[parameter] = {k: v if k == "step" else like(v, parameter) for k, v in found.items()}
        for name, parameter, _ in self.critic.trained if self.critic else ():
            if name not in state or state[name].shape != parameter.shape:
                raise Fault(f"no {name} of this model in the checkpoint; resume with the run's own model and algorithm")
            parameter.data.copy_(like(state[name].to(parameter.device), parameter))
        if self.reference is not None and self.objective.reference_reset:
            for name, parameter in self.reference.named_parameters():
                parameter.data.copy_(like(state[f"reference.{name}"].to(parameter.device), parameter))
        self.updates_due, self.nonfinite_in_a_row = state["learner.counters"].tolist()

    def prepare(self, batch: TrainBatch) -> StepState:
        """A batch on the learner's device, with nothing scored yet (NaN)."""
        batch = batch.to(self.accelerator.device)
        dtype = torch.float64 if self.policy.dtype == torch.float64 else torch.float32
        old, entropy, ref = torch.full((3, len(batch.targets)), math.nan, dtype=dtype, device=batch.targets.device)
        mask = torch.isfinite(batch.sampler_logprobs)  # what the sampler can't vouch for is not trained
        advantages, weights, values, returns = torch.zeros(4, len(mask), dtype=torch.float64, device=mask.device)
        kl_term = self.objective.needs_reference and not self.objective.kl_in_reward
        known = None if self.reference is None else ref
        return StepState(batch, mask, old, entropy, known, advantages, weights, values, returns, kl_term)

    def estimate(self, state: StepState) -> None:
        """Fill in the advantages; with a critic also the returns, from its values, and the advantages are whitened.
        With the KL in the reward the old and the reference's logprobs must be there."""
        batch, wanted = state.batch, self.objective
        penalties = torch.zeros_like(state.weights)
        if wanted.kl_in_reward and state.ref is not None:
            kl = ESTIMATORS[wanted.kl_estimator or "k1"](state.old, state.ref)
            penalties = masked(wanted.kl_weight * kl.double(), state.mask)
        outcome = Outcome(batch.rewards, batch.group_ids, batch.sequence_ids, penalties, batch.parts,
                          list(self.part_weights.values()), state.values if self.critic else None,
                          gamma=wanted.gamma, lam=wanted.lam)  # fmt: skip
        found = self.estimator(outcome)
        if found.shape not in (batch.rewards.shape, batch.targets.shape) or not bool(torch.isfinite(found).all()):
            raise Fault(f"objective.advantage={wanted.advantage} must give finite numbers, one a chain or one a token")
        found = found if len(found) == len(batch.targets) else found[batch.sequence_ids]
        if self.critic:
            state.returns = found + state.values
            found = torch.zeros_like(found).masked_scatter(state.mask, whiten(found[state.mask]))
        state.advantages = found.to(state.old)

    def accumulate(self, state: StepState, part: Sequence[int], fill_old: bool = False) -> float:
        """Add one minibatch's gradient to the parameters and return its loss; `fill_old` keeps its logprobs as old."""
        batch, rows = state.batch, state.batch.rows_of(part)
        chains, total = batch.sequence_ids[rows], torch.zeros((), device=self.accelerator.device)
        shares = (state.mask[rows], chains, batch.group_ids[chains], self.max_tokens)
        state.weights[rows] = token_weights(self.objective.aggregation, *shares)
        nothing = replace(state, mask=state.mask & False, weights=state.weights * 0)
        unsynced, limit = partial(self.accelerator.no_sync, self.scorers[self.policy]), self.train.tokens_per_microbatch
        with self.ranks.filling(rows, *((state.old, state.entropy) if fill_old else ())):
            for micro in self.ranks.packed(batch, part, limit, unsynced):
                logprobs, entropy = self._forward(self.policy, batch, micro)
                if fill_old and micro.counts:
                    state.old[micro.rows], state.entropy[micro.rows] = logprobs.detach(), entropy
                loss = self._loss(state if micro.counts else nothing, micro.rows, logprobs)
                self.accelerator.backward(loss * self.ranks.size)  # gradients are averaged over ranks
                total = total + loss.detach()
                recomputes = self.train.gradient_checkpointing
                flops = training_flops(self.shape, micro.lengths, len(micro.rows), recomputes)
                state.tally.update(flops=flops * micro.counts)
        return float(self.ranks.sum(total))

    def _loss(self, state: StepState, rows: Tensor, logprobs: Tensor) -> Tensor:
        """One micro-batch's part of the minibatch's loss, a scalar."""
        batch, wanted, weights = state.batch, self.objective, state.weights[rows]
        known = (state.old[rows], batch.sampler_logprobs[rows], state.advantages[rows])
        tokens = Tokens(logprobs, *known, state.mask[rows], batch.sequence_ids[rows])
        result = self.loss(tokens, wanted.clip_low, wanted.clip_high)
        losses, clipped = result if isinstance(result, tuple) else (result, torch.zeros_like(tokens.mask))
        if losses.shape != tokens.mask.shape:
            raise Fault(f"objective.loss={wanted.loss} gave {list(losses.shape)} numbers for {len(rows)} tokens")
        correction = correct(wanted.correction, tokens)
        policy_loss = aggregate(losses * correction.weights, weights)
        ratio = tokens.log_ratio.detach()
        state.tally.update(loss=policy_loss.detach(), **diagnose(ratio, clipped, tokens.mask))
        state.tally.update({f"correction/{name}": value for name, value in correction.metrics.items()})
        state.ratio_max = max(state.ratio_max, float(masked(ratio.exp(), tokens.mask).max()))
        if state.ref is None or not state.kl_term:
            return policy_loss
        kl = ESTIMATORS[wanted.kl_estimator or "k3"](logprobs, state.ref[rows])
        return policy_loss + wanted.kl_weight * aggregate(kl * ratio.exp(), weights)  # the tokens are of the old policy

    def _update(self, state: StepState, part: Sequence[int], check: Check | None) -> None:
        """One optimizer step on a minibatch, or none where there is nothing to learn from or the gradient is broken.
        The critic's goes with it; where the policy has nothing to learn from, the critic's is taken alone.
        A `check` means that this is the first one: its logprobs become the old ones, and the mismatch is known."""
        learns, figures = state.has_signal(part), list[float]()
        if not learns:  # AdamW's momentum would move the weights even on a zero gradient
            state.updates.update(no_signal=int(not state.frozen))
            if self.critic is None:
                return
        optimizers = [self.optimizer] * learns + ([self.critic.optimizer] if self.critic else [])
        try:
            if learns:
                loss = self.accumulate(state, part, fill_old=check is not None)
                if check is not None:
                    check(mismatch(state))
                clip = self.accelerator.clip_grad_norm_
                norm = float(full(clip(self.policy.parameters(), self.train.max_grad_norm)))
                figures += loss, norm
            if self.critic is not None:
                figures += self.critic.accumulate(state, part)
            if not self.ranks.most(not all(map(math.isfinite, figures))):
                for group in self.optimizer.param_groups:
                    group["lr"] = self.learning_rate(self.updates_due)
                for optimizer in optimizers:
                    optimizer.step()
                state.updates.update({"done": 1, "grad_norm": norm} if learns else {})
                self.nonfinite_in_a_row = 0
                return
        finally:
            for optimizer in optimizers:
                optimizer.zero_grad()
        state.updates.update(nonfinite=1)
        self.nonfinite_in_a_row += 1
        if self.nonfinite_in_a_row >= MAX_NONFINITE:
            raise Fault(
                f"losses and gradient norms {figures}: not finite in {MAX_NONFINITE} optimizer steps in a row; "
                "lower train.learning_rate or resume from an earlier checkpoint"
            )

    @torch.no_grad()
    def _score(
        self, state: StepState, model: PreTrainedModel, sequences: Sequence[int], temperature: float | None = None
    ) -> None:
        """Fill in what the model says of some chains' rows: the policy's logprobs as old, the reference's as ref."""
        shape, flops = self.shape if model is self.policy else self.shape.served, 0.0
        kept: Sequence[Any] = (state.old, state.entropy) if model is self.policy else (state.ref,)
        with self.ranks.filling(state.batch.rows_of(sequences), *kept):
            for micro in self.ranks.packed(state.batch, sequences, self.train.tokens_per_microbatch):
                found = self._forward(model, state.batch, micro, temperature)
                for vector, values in zip(kept, found, strict=False) if micro.counts else ():
                    vector[micro.rows] = values
                flops += micro.counts * forward_flops(shape, micro.lengths, len(micro.rows))
        state.tally.update(flops=flops)

    def _forward(
        self, model: PreTrainedModel, batch: TrainBatch, micro: MicroBatch, temperature: float | None = None
    ) -> tuple[Tensor, Tensor]:
        with nullcontext() if self.ranks.sharded else self.accelerator.autocast():  # fsdp2 casts by its own policy
            scored = self.scorers[model](micro, batch.targets[micro.rows], temperature or self.temperature)
        return cast(tuple[Tensor, Tensor], scored)

    def _stats(self, state: StepState, seconds: float) -> StepStats:
        tally, batch = self.ranks.total(state.tally), state.batch
        tally.update(state.updates)
        flops, ratio_max = float(tally["flops"]), self.ranks.most(state.ratio_max)

        def mean(name: str, by: str = "tokens") -> float:
            return float(tally[name]) / float(tally[by]) if tally[by] else math.nan

        return {
            "loss/policy": mean("loss", by="done"),
            "kl/ref": 0.0 if state.ref is None else float(k3(state.old, state.ref)[state.mask].mean()),
            "approx_kl": mean("approx_kl"),
            "clip_fraction": mean("clipped"),
            "entropy": float(state.entropy[state.mask].nanmean()),
            "grad_norm": mean("grad_norm", by="done"),
            "learning_rate": self.learning_rate(self.updates_due - 1),
            "ratio/max": ratio_max if "tokens" in tally else math.nan,
            **mismatch(state),
            **{name: mean(name) for name in tally if name.startswith("correction/")},
            **(self.critic.stats(state) if self.critic else {}),
            "staleness": float(batch.ages.double().mean()),
            "tokens/trained": int(state.mask.sum()),
            "tokens/missing": int((~state.mask).sum()),
            "flops/train": flops,
            "padding_waste": 0.0,  # chains are packed end to end
            "time/learn": seconds,
            "mfu": flops / seconds / self.peak_gflops / self.ranks.size / 1e9,
            "samples/dropped": batch.dropped,
            "groups/no_variance": batch.no_variance,
            **{f"updates/{name}": float(tally[name]) for name in ("done", "no_signal", "nonfinite")},
        }


def mismatch(state: StepState) -> StepStats:
    """How far the sampler's logprobs are from the old ones on fresh tokens (nats): 0 where server and learner agree."""
    known = torch.isfinite(state.batch.sampler_logprobs)
    fresh = state.batch.ages == 0
    rows = fresh & known
    sampler, old = state.batch.sampler_logprobs[rows].double(), state.old[rows].double()
    gap = (old - sampler).abs()
    return {
        "mismatch_kl/fresh": float(k3(sampler, old).mean()),  # the mean of nothing is NaN
        "mismatch/abs_mean": float(gap.mean()),
        "mismatch/abs_max": float(gap.max()) if len(gap) else math.nan,
        "mismatch/missing": float((~known[fresh]).double().mean()),
    }
