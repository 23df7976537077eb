"""One batch of scored chains -> optimizer steps -> figures. accelerate lives here; the loop decides what comes when.

Three policies: the *sampler* made the tokens, *old* is this model at the start of the batch, *current* is it now.
"""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from rewards.errors import Fault
from rl.advantages import group_norm
from rl.attention import padded_slots
from rl.batch import Estimator, MicroBatch, TrainBatch, build_batch, flatten, pack, split_minibatches
from rl.config import TrainConfig
from rl.correction import Correction, no_correction, token_correction, usable
from rl.flops import ModelShape, forward_flops, measure_peak_gflops, training_flops
from rl.kl import k3
from rl.losses import LossInputs, LossOutputs, aggregate, clip_loss, diagnose, masked, token_weights
from rl.model import policy_logprobs
from rl.presets import Objective
from rollout.types import Chain, Group

StepStats: TypeAlias = dict[str, float]
"""Figures of one step under their names in metrics.jsonl; NaN = there was nothing to measure it on."""
Check: TypeAlias = Callable[[StepStats], None]

ADVANTAGES: dict[str, Estimator] = {"group_norm": group_norm}
LOSSES: dict[str, Callable[[LossInputs], LossOutputs]] = {"clip": clip_loss}
CORRECTIONS: dict[str, Callable[[Tensor, Tensor], Correction]] = {"none": no_correction, "token": token_correction}

MAX_NONFINITE = 3
"""Optimizer steps in a row with a loss or gradient that isn't finite, after which the run stops."""


@dataclass
class _Scores:
    """What is known of each row before the first optimizer step, [N] each."""

    old: Tensor
    entropy: Tensor
    ref: Tensor | None
    mask: Tensor  # bool: rows that can be trained


@dataclass
class Tally:
    """Sums over a step's micro-batches; divided only when the step is over."""

    sums: defaultdict[str, Tensor | float] = field(default_factory=lambda: defaultdict(float))
    ratio_max: float = 0.0
    grad_norms: list[float] = field(default_factory=list)

    def add(self, **values: Tensor | float) -> None:
        """Add to the named sums; tensors stay on their device."""
        for name, value in values.items():
            self.sums[name] = self.sums[name] + (value.detach() if isinstance(value, Tensor) else value)

    def mean(self, name: str, by: str) -> float:
        """One sum over another, NaN over nothing."""
        count = float(self.sums[by])
        return float(self.sums[name]) / count if count else math.nan


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
        reference: PreTrainedModel | None = None,
        dtype: str = "float32",
    ) -> None:
        """`total_steps` is the whole run's, for the decay; `reference` is needed where the objective has a KL term.
        With dtype bfloat16 the policy is given in fp32 and computes under autocast."""
        if objective.needs_reference and reference is None:
            raise ValueError("objective.kl_weight > 0 needs a reference model")
        torch.set_num_threads(train.threads or _cores())
        self.objective, self.train, self.temperature = objective, train, temperature
        self.total_updates = total_steps * train.epochs * train.minibatches
        precision = "bf16" if dtype == "bfloat16" else "no"
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=precision)
        if train.gradient_checkpointing:
            policy.gradient_checkpointing_enable({"use_reentrant": False})
        optimizer = torch.optim.AdamW(
            policy.parameters(), lr=train.learning_rate, weight_decay=train.weight_decay, fused=True
        )
        self.policy, self.optimizer = self.accelerator.prepare(policy.train(), optimizer)
        self.reference = None
        if objective.needs_reference and reference is not None:
            self.reference = reference.to(self.accelerator.device).eval().requires_grad_(False)
        self.shape = ModelShape.of(policy)
        self.updates_due = 0  # optimizer steps that the schedule has seen, skipped ones included
        self.nonfinite_in_a_row = 0

    @cached_property
    def peak_gflops(self) -> float:
        """Matrix-multiplication speed of this machine, measured once."""
        half = self.accelerator.mixed_precision == "bf16"
        dtype = torch.bfloat16 if half else torch.float32
        return measure_peak_gflops(device=self.accelerator.device, dtype=dtype)

    def step(self, groups: Sequence[Group], version: int, check: Check | None = None) -> StepStats:
        """Train on one step's scored groups; `version` is the label of the weights held now.

        `check` sees the mismatch figures before the first optimizer step, and may raise: no weight has moved then.

        Raises Fault after MAX_NONFINITE optimizer steps in a row without a finite loss and gradient.
        """
        start, tally = time.perf_counter(), Tally()
        batch = build_batch(groups, version, ADVANTAGES[self.objective.advantage]).to(self.accelerator.device)
        parts = split_minibatches(batch, self.train.minibatches) if batch.group_ids else []
        scores = self._blank_scores(batch)
        # The first minibatch meets the weights of the start of the batch: its old logprobs are its own, exact and free.
        free = set(parts[0]) if parts and self._has_signal(batch, parts[0], scores) else set()
        self._score(batch, [s for s in batch.sequences if s not in free], scores, tally)

        def verify() -> None:
            if check is not None:
                check(mismatch(batch, scores.old))

        if not free:
            verify()
        first_update = self.updates_due
        for epoch in range(self.train.epochs):
            for i, part in enumerate(parts):
                self.updates_due = first_update + epoch * self.train.minibatches + i
                fill = epoch == 0 and i == 0
                self._update(batch, part, scores, tally, verify if fill and free else None, fill)
        self.updates_due = first_update + self.train.epochs * self.train.minibatches
        return self._stats(batch, scores, tally, time.perf_counter() - start)

    def learning_rate(self, update: int) -> float:
        """The learning rate of optimizer step `update` (from 0): linear warm-up, then decay to 0 at the run's end."""
        peak, warmup = self.train.learning_rate, self.train.warmup_steps
        if update < warmup:
            return peak * (update + 1) / (warmup + 1)
        done = (update - warmup) / max(1, self.total_updates - warmup)
        shares = {"none": 1.0, "linear": 1.0 - done, "cosine": (1.0 + math.cos(math.pi * min(1.0, done))) / 2}
        return peak * max(0.0, shares[self.train.decay])

    @torch.no_grad()
    def score_logprobs(self, chains: Sequence[Chain], temperature: float | None = None) -> list[Tensor]:
        """The current policy's logprobs of each chain's sampled tokens, one [n] per chain; temperature: the run's."""
        batch = flatten(chains, version=0).to(self.accelerator.device)
        scores = self._blank_scores(batch)
        for micro in pack(batch, batch.sequences, self.train.tokens_per_microbatch):
            scores.old[micro.rows], _ = self._forward(self.policy, batch, micro, temperature)
        return [part.cpu() for part in scores.old.split(torch.tensor(batch.row_bounds).diff().tolist())]

    def state_dict(self) -> dict[str, Tensor]:
        """Everything but the weights that the next step depends on, as named tensors for a safetensors file."""
        names = [name for name, _ in self.policy.named_parameters()]
        counters = torch.tensor([self.updates_due, self.nonfinite_in_a_row])
        state = {"learner.counters": counters}
        for index, values in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{key}.{names[index]}": value for key, value in values.items()}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave. Raises Fault where it belongs to another model."""
        plain = self.optimizer.state_dict()
        plain["state"] = {}
        updated = any(key.startswith("optimizer.") for key in state)  # not before the first optimizer step
        for index, (name, parameter) in enumerate(self.policy.named_parameters() if updated else ()):
            keys = {key: f"optimizer.{key}.{name}" for key in ("step", "exp_avg", "exp_avg_sq")}
            found = {key: state[full].clone() for key, full in keys.items() if full in state}
            if len(found) < len(keys) or found["exp_avg"].shape != parameter.shape:
                raise Fault(f"the optimizer state of {name} is not this model's; resume with the model of the run")
            plain["state"][index] = found
        self.optimizer.load_state_dict(plain)
        self.updates_due, self.nonfinite_in_a_row = state["learner.counters"].tolist()

    def accumulate(
        self, batch: TrainBatch, part: Sequence[int], scores: _Scores, tally: Tally, fill: bool = False
    ) -> float:
        """Add one minibatch's gradient to the parameters and return its loss; `fill` records the logprobs as old."""
        rows = batch.rows_of(part)
        weights = token_weights(scores.mask[rows], batch.sequence_ids[rows], self.objective.aggregation)
        denominator = float(weights.sum())
        total = torch.zeros((), device=self.accelerator.device)
        for micro in pack(batch, part, self.train.tokens_per_microbatch):
            logprobs, entropy = self._forward(self.policy, batch, micro)
            if fill:
                scores.old[micro.rows] = logprobs.detach()
                scores.entropy[micro.rows] = entropy
            loss = self._loss(batch, micro, scores, logprobs, denominator, tally)
            self.accelerator.backward(loss)
            total = total + loss.detach()
            cost = training_flops(self.shape, micro.lengths, len(micro.rows), self.train.gradient_checkpointing)
            tally.add(flops=cost, slots=padded_slots(micro.lengths), positions=sum(micro.lengths))
        return float(total)

    def _loss(
        self, batch: TrainBatch, micro: MicroBatch, scores: _Scores, logprobs: Tensor, denominator: float, tally: Tally
    ) -> Tensor:
        """One micro-batch's part of the minibatch's loss, a scalar."""
        rows, wanted = micro.rows, self.objective
        mask, sequence_ids, old = scores.mask[rows], batch.sequence_ids[rows], scores.old[rows]
        advantages = batch.advantages[sequence_ids]
        outputs = LOSSES[wanted.loss](LossInputs(logprobs, old, advantages, mask, wanted.clip_low, wanted.clip_high))
        correction = CORRECTIONS[wanted.correction](old, batch.sampler_logprobs[rows])
        weighted = outputs.token_losses * correction.weights
        loss = policy_loss = aggregate(weighted, mask, sequence_ids, wanted.aggregation, denominator)
        if scores.ref is not None:
            kl = k3(logprobs, scores.ref[rows])
            loss = loss + wanted.kl_weight * aggregate(kl, mask, sequence_ids, wanted.aggregation, denominator)
            tally.add(kl=masked(kl, mask).sum())
        seen = diagnose(outputs, mask)
        tally.add(loss=policy_loss, tokens=seen.tokens, clipped=seen.clipped, approx_kl=seen.approx_kl)
        tally.add(**{f"correction_{name}": value for name, value in correction.metrics.items()})
        tally.ratio_max = max(tally.ratio_max, float(seen.ratio_max))
        return loss

    def _update(
        self,
        batch: TrainBatch,
        part: Sequence[int],
        scores: _Scores,
        tally: Tally,
        verify: Callable[[], None] | None,
        fill: bool,
    ) -> None:
        """One optimizer step on a minibatch, or none where there is nothing to learn from or the gradient is broken.

        `verify` is called between the gradient and the step.
        """
        if not self._has_signal(batch, part, scores):
            tally.add(no_signal=1)  # AdamW's momentum would move the weights even on a zero gradient
            return
        loss = self.accumulate(batch, part, scores, tally, fill)
        if verify is not None:
            verify()
        norm = float(self.accelerator.clip_grad_norm_(self.policy.parameters(), self.train.max_grad_norm))
        if math.isfinite(loss) and math.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate(self.updates_due)
            self.optimizer.step()
            tally.add(updates=1)
            tally.grad_norms.append(norm)
            self.nonfinite_in_a_row = 0
        else:
            self.nonfinite_in_a_row += 1
            tally.add(nonfinite=1)
        self.optimizer.zero_grad()
        if self.nonfinite_in_a_row >= MAX_NONFINITE:
            raise Fault(
                f"loss {loss} and gradient norm {norm}: not finite in {MAX_NONFINITE} optimizer steps in a row; "
                "lower train.learning_rate or resume from an earlier checkpoint"
            )

    def _has_signal(self, batch: TrainBatch, part: Sequence[int], scores: _Scores) -> bool:
        """Whether a minibatch can move the weights: rows to train with a KL term or an advantage that is not zero."""
        rows = batch.rows_of(part)
        rows = rows[scores.mask[rows]]
        pull = self.objective.needs_reference and len(rows) > 0
        return pull or bool(batch.advantages[batch.sequence_ids[rows]].any())

    def _blank_scores(self, batch: TrainBatch) -> _Scores:
        dtype = torch.float64 if self.policy.dtype == torch.float64 else torch.float32
        blank = torch.full(batch.targets.shape, math.nan, dtype=dtype, device=batch.targets.device)
        ref = None if self.reference is None else blank.clone()
        mask = usable(batch.sampler_logprobs, self.objective.correction)
        return _Scores(old=blank, entropy=blank.clone(), ref=ref, mask=mask)

    def _score(self, batch: TrainBatch, sequences: Sequence[int], scores: _Scores, tally: Tally) -> None:
        """Old logprobs of some chains, reference logprobs of all."""
        self._score_with(self.policy, batch, sequences, scores.old, scores.entropy, tally)
        if self.reference is not None and scores.ref is not None:
            self._score_with(self.reference, batch, batch.sequences, scores.ref, torch.empty_like(scores.ref), tally)

    @torch.no_grad()
    def _score_with(
        self,
        model: PreTrainedModel,
        batch: TrainBatch,
        sequences: Sequence[int],
        logprobs: Tensor,
        entropy: Tensor,
        tally: Tally,
    ) -> None:
        """Write the model's logprobs and entropies of some chains' rows into two [N] vectors."""
        for micro in pack(batch, sequences, self.train.tokens_per_microbatch):
            logprobs[micro.rows], entropy[micro.rows] = self._forward(model, batch, micro)
            cost = forward_flops(self.shape, micro.lengths, len(micro.rows))
            tally.add(flops=cost, slots=padded_slots(micro.lengths), positions=sum(micro.lengths))

    def _forward(
        self, model: PreTrainedModel, batch: TrainBatch, micro: MicroBatch, temperature: float | None = None
    ) -> tuple[Tensor, Tensor]:
        with self.accelerator.autocast():
            return policy_logprobs(model, micro, batch.targets[micro.rows], temperature or self.temperature)

    def _stats(self, batch: TrainBatch, scores: _Scores, tally: Tally, seconds: float) -> StepStats:
        flops, trained = float(tally.sums["flops"]), int(scores.mask.sum())
        norms = tally.grad_norms
        return {
            "loss/policy": tally.mean("loss", by="updates"),
            "kl/ref": tally.mean("kl", by="tokens") if self.reference is not None else 0.0,
            "approx_kl": tally.mean("approx_kl", by="tokens"),
            "clip_fraction": tally.mean("clipped", by="tokens"),
            "entropy": float(scores.entropy.nanmean()),
            "grad_norm": sum(norms) / len(norms) if norms else math.nan,
            "learning_rate": self.learning_rate(self.updates_due - 1),
            "ratio/max": tally.ratio_max if tally.sums["tokens"] else math.nan,
            **mismatch(batch, scores.old),
            **{
                name.replace("_", "/", 1): tally.mean(name, by="tokens") for name in tally.sums if "correction_" in name
            },
            "staleness": float(batch.ages.double().mean()),
            "tokens/trained": trained,
            "flops/train": flops,
            "padding_waste": 1.0 - tally.mean("positions", by="slots"),
            "time/learn": seconds,
            "mfu": flops / seconds / self.peak_gflops / 1e9,
            "samples/dropped": batch.dropped,
            "groups/no_variance": batch.no_variance,
            "updates/done": float(tally.sums["updates"]),
            "updates/no_signal": float(tally.sums["no_signal"]),
            "updates/nonfinite": float(tally.sums["nonfinite"]),
        }


def mismatch(batch: TrainBatch, old_logprobs: Tensor) -> StepStats:
    """How far the sampler's logprobs are from the learner's on fresh tokens, before any optimizer step (nats)."""
    rows = batch.fresh & torch.isfinite(batch.sampler_logprobs)
    sampler, old = batch.sampler_logprobs[rows].double(), old_logprobs[rows].double()
    if not len(old):
        return {"mismatch_kl/fresh": math.nan, "mismatch/abs_mean": math.nan, "mismatch/abs_max": math.nan}
    gap = (old - sampler).abs()
    return {
        "mismatch_kl/fresh": float(k3(sampler, old).mean()),
        "mismatch/abs_mean": float(gap.mean()),
        "mismatch/abs_max": float(gap.max()),
    }


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
