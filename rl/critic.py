"""PPO's critic: the reward still to come, told for the state before each token. A model and an optimizer of its own,
which the policy's push and save don't see. docs/decisions/critic.md says why it is made so."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rl.advantages import MIN_STD, deviation
from rl.batch import MicroBatch
from rl.config import CriticConfig, TrainConfig
from rl.flops import ModelShape, forward_flops, training_flops
from rl.logprobs import upcast
from rl.losses import aggregate, value_loss
from rl.model import predictor_states
from rl.parallel import Ranks, full

if TYPE_CHECKING:
    from rl.learner import StepState, StepStats


class ValueModel(nn.Module):
    """A body with one number a position on top, which is exactly 0 until it has learned."""

    def __init__(self, body: PreTrainedModel) -> None:
        super().__init__()
        self.body = body
        self.weight = nn.Parameter(torch.zeros(body.config.get_text_config().hidden_size, dtype=body.dtype))
        self.bias = nn.Parameter(torch.zeros(1, dtype=body.dtype))

    def forward(self, micro: MicroBatch) -> Tensor:
        """Values of a micro-batch's rows, [N] in fp32 at least, read off the positions that predict their tokens."""
        hidden = upcast(predictor_states(self.body, micro))
        with torch.autocast(hidden.device.type, enabled=False):
            return hidden @ upcast(self.weight) + upcast(self.bias)


class Critic:
    """A value model and its AdamW, over the policy's minibatches and micro-batches."""

    def __init__(
        self, model: PreTrainedModel, settings: CriticConfig, train: TrainConfig, accelerator: Any, ranks: Ranks
    ) -> None:
        """`model` is a causal language model of its own, in fp32, whose output head is not used."""
        self.settings, self.train, self.accelerator, self.ranks = settings, train, accelerator, ranks
        self.shape = replace(ModelShape.of(model), head=model.config.get_text_config().hidden_size)
        if train.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        values = ValueModel(model.base_model).train()
        self.model: Any
        self.model, self.optimizer = ranks.ready(values, settings.learning_rate, train.weight_decay, accelerator)
        self.trained = [(f"critic.{name}", parameter, self.optimizer) for name, parameter in values.named_parameters()]

    @torch.no_grad()
    def score(self, state: "StepState") -> None:
        """Fill in the values of all rows as they are at the start of the batch."""
        every = state.batch.sequences
        with self.ranks.filling(state.batch.rows_of(every), state.values):
            for micro in self.ranks.packed(state.batch, every, self.train.tokens_per_microbatch):
                values = self.model(micro)
                if micro.counts:
                    state.values[micro.rows] = values.to(state.values)
                    state.tally.update(flops=forward_flops(self.shape, micro.lengths, len(micro.rows)))

    def accumulate(self, state: "StepState", part: Sequence[int]) -> tuple[float, float]:
        """Add one minibatch's gradient, clipped, to the parameters: of the mean loss of its trained tokens. Returns the
        loss, and the gradient's norm before the clip."""
        count = state.mask[state.batch.rows_of(part)].sum().clamp(min=1)
        total = torch.zeros((), device=count.device)
        unsynced = partial(self.accelerator.no_sync, self.model)
        for micro in self.ranks.packed(state.batch, part, self.train.tokens_per_microbatch, unsynced):
            rows, recomputes = micro.rows, self.train.gradient_checkpointing
            old, returns = state.values[rows].to(state.old), state.returns[rows].to(state.old)
            losses = value_loss(self.model(micro), old, returns, self.settings.clip)
            loss = aggregate(losses, micro.counts * state.mask[rows].double() / count)
            self.accelerator.backward(loss * self.ranks.size)
            total = total + loss.detach()
            flops = training_flops(self.shape, micro.lengths, len(rows), recomputes)
            state.tally.update(flops=flops * micro.counts)
        total = self.ranks.sum(total)
        norm = float(full(self.accelerator.clip_grad_norm_(self.model.parameters(), self.train.max_grad_norm)))
        state.updates.update(value_updates=1, value_loss=float(total), value_norm=norm)
        return float(total), norm

    def stats(self, state: "StepState") -> "StepStats":
        """Figures of a step; explained_variance = 1 - Var(returns - values) / Var(returns), with the values from before
        any update: 1 = all, 0 = what a constant explains; NaN where the returns don't vary."""
        updates, values, returns = state.updates["value_updates"], state.values[state.mask], state.returns[state.mask]
        updates, spread = updates or math.nan, deviation(returns)
        left = deviation(returns - values) / spread if spread >= MIN_STD else math.nan
        return {
            "loss/value": state.updates["value_loss"] / updates,
            "grad_norm/value": state.updates["value_norm"] / updates,
            "values/mean": float(values.mean()),
            "values/explained_variance": float(1 - left**2),
        }
