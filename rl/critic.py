"""PPO's critic: the reward still to come, told for the state before each token. A model and an optimizer of its own,
which the policy's push and save don't see. docs/decisions/critic.md says why it is made so."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rl.advantages import MIN_STD, deviation
from rl.batch import MicroBatch, pack
from rl.config import CriticConfig, TrainConfig
from rl.flops import ModelShape, forward_flops, training_flops
from rl.logprobs import upcast
from rl.losses import aggregate, value_loss
from rl.model import predictor_states

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
            return hidden @ self.weight + self.bias


class Critic:
    """A value model and its AdamW, over the policy's minibatches and micro-batches."""

    def __init__(self, model: PreTrainedModel, settings: CriticConfig, train: TrainConfig, accelerator: Any) -> None:
        """`model` is a causal language model of its own, in fp32, whose output head is not used."""
        self.settings, self.train, self.accelerator = settings, train, accelerator
        self.shape = replace(ModelShape.of(model), head=model.config.get_text_config().hidden_size)
        if train.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        values, lr, decay = ValueModel(model.base_model).train(), settings.learning_rate, train.weight_decay
        named = list(values.named_parameters())
        optimizer = torch.optim.AdamW(values.parameters(), lr, weight_decay=decay, fused=True)
        self.model, self.optimizer = accelerator.prepare(values, optimizer)
        self.trained = [(f"critic.{name}", parameter, self.optimizer) for name, parameter in named]

    @torch.no_grad()
    def score(self, state: "StepState") -> None:
        """Fill in the values of all rows as they are at the start of the batch."""
        for micro in pack(state.batch, state.batch.sequences, self.train.tokens_per_microbatch):
            state.values[micro.rows] = self.model(micro).to(state.values)
            state.tally.update(flops=forward_flops(self.shape, micro.lengths, len(micro.rows)))

    def accumulate(self, state: "StepState", part: Sequence[int]) -> tuple[float, float]:
        """Add one minibatch's gradient, clipped, to the parameters: of the mean loss of its trained tokens. Returns the
        loss, and the gradient's norm before the clip."""
        count = state.mask[state.batch.rows_of(part)].sum().clamp(min=1)
        total = torch.zeros((), device=count.device)
        for micro in pack(state.batch, part, self.train.tokens_per_microbatch):
            rows, recomputes = micro.rows, self.train.gradient_checkpointing
            old, returns = state.values[rows].to(state.old), state.returns[rows].to(state.old)
            losses = value_loss(self.model(micro), old, returns, self.settings.clip)
            loss = aggregate(losses, state.mask[rows].double() / count)
            self.accelerator.backward(loss)
            total = total + loss.detach()
            state.tally.update(flops=training_flops(self.shape, micro.lengths, len(rows), recomputes))
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.train.max_grad_norm))
        state.tally.update(value_updates=1, value_loss=float(total), value_norm=norm)
        return float(total), norm

    def stats(self, state: "StepState") -> "StepStats":
        """Figures of a step; explained_variance = 1 - Var(returns - values) / Var(returns), with the values from before
        any update: 1 = all, 0 = what a constant explains; NaN where the returns don't vary."""
        updates, values, returns = state.tally["value_updates"], state.values[state.mask], state.returns[state.mask]
        updates, spread = updates or math.nan, deviation(returns)
        left = deviation(returns - values) / spread if spread >= MIN_STD else math.nan
        return {
            "loss/value": state.tally["value_loss"] / updates,
            "grad_norm/value": state.tally["value_norm"] / updates,
            "values/mean": float(values.mean()),
            "values/explained_variance": float(1 - left**2),
        }
