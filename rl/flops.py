"""Floating-point operations of dense decoders, from their shapes (multiply and add are two): linear layers, the head
where it is computed, causal attention's two products over L (L + 1) / 2 pairs. Left out: norms, rotary embeddings,
softmax and the embedding look-up (under 1 % together from a width of about 512 on)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import nn
from torch.utils.benchmark import Timer

from rl.attention import VarlenPlan


@dataclass(frozen=True)
class ModelShape:
    """What the formulas need to know about a model."""

    linear: int  # weights of all linear layers but the head: each works on every token
    head: int  # weights of the output head, hidden x vocabulary
    attention: int  # layers x heads x head size
    adapters: int = 0  # weights of LoRA's A and B, beside the layers they sit on
    skipped: int = 0  # weights without a gradient of their own, and again those whose input has none
    frozen_head: bool = False

    @classmethod
    def of(cls, model: Any) -> Self:
        """The shape of a transformers causal language model, as it would train now."""
        config = model.config.get_text_config()
        head = model.get_output_embeddings()
        layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
        adapters = sum(m.weight.numel() for name, m in layers.items() if is_adapter(name))
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            linear=sum(m.weight.numel() for m in layers.values()) - adapters,
            head=head.weight.numel(),
            attention=config.num_hidden_layers * config.num_attention_heads * head_dim,
            adapters=adapters,
            skipped=_skipped(model, list(layers.values())) if adapters else 0,
            frozen_head=not head.weight.requires_grad,
        )

    @property
    def served(self) -> Self:
        """The model that samples: what adapters add is merged into the layers they sit on."""
        return replace(self, adapters=0)


def is_adapter(name: str) -> bool:
    """Whether a module or parameter of that dotted name belongs to a LoRA adapter (peft's naming)."""
    return ".lora_" in name


@torch.enable_grad()
def _skipped(model: Any, layers: list[nn.Linear]) -> int:
    """Matrix products, in weights, that the backward pass under LoRA need not do: by weight in a frozen layer, by input
    in one whose input no trained parameter has touched, which one token's forward pass shows."""
    learns: dict[nn.Module, bool] = {}  # whether the input has a gradient
    hooks = [m.register_forward_pre_hook(lambda m, args: learns.update({m: args[0].requires_grad})) for m in layers]
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    model.base_model(input_ids=ids, position_ids=ids, use_cache=False, varlen=VarlenPlan(ids.new_tensor([0, 1]), [1]))
    for hook in hooks:
        hook.remove()
    return sum(m.weight.numel() * (2 - m.weight.requires_grad - learns.get(m, True)) for m in layers)


def forward_flops(shape: ModelShape, lengths: Sequence[int], head_tokens: int) -> float:
    """One forward pass over chains of these lengths, with `head_tokens` positions through the head."""
    linear = shape.linear + shape.adapters
    attention = shape.attention * sum(n * (n + 1) for n in lengths)  # two products a pair
    return 2.0 * (linear * sum(lengths) + shape.head * head_tokens + attention)


def backward_flops(shape: ModelShape, lengths: Sequence[int], head_tokens: int) -> float:
    """The backward pass: two products (by weight, by input) for each of the forward pass, less what LoRA spares."""
    linear = 2 * (shape.linear + shape.adapters) - shape.skipped
    head = shape.head * (1 if shape.frozen_head else 2)
    # attention counts in full in every layer, also in one below the first adapter
    attention = 2 * shape.attention * sum(n * (n + 1) for n in lengths)
    return 2.0 * (linear * sum(lengths) + head * head_tokens + attention)


def training_flops(shape: ModelShape, lengths: Sequence[int], head_tokens: int, checkpointing: bool = False) -> float:
    """Forward and backward: three times the forward pass where all is trained; with checkpointing one forward more."""
    forward = forward_flops(shape, lengths, head_tokens)
    return (2 if checkpointing else 1) * forward + backward_flops(shape, lengths, head_tokens)


def rollout_flops(shape: ModelShape, lengths: Sequence[tuple[int, int]]) -> float:
    """Prefill and decoding with a KV cache of chains, each given as tokens of its prompt and tokens in all.
    Each token but the last goes through the model once and attends to those before it: one causal pass. The head runs
    for sampled tokens. A prompt shared through a prefix cache is still counted for each chain."""
    sampled = sum(n - prompt for prompt, n in lengths)
    return forward_flops(shape.served, [n - 1 for _, n in lengths], sampled)


def measure_peak_gflops(
    seconds: float = 0.3, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> float:
    """Matrix-multiplication speed of this machine with the threads set now, GFLOP/s: the denominator of `mfu`."""
    size = 1024 if torch.device(device).type == "cpu" else 8192
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    timer = Timer("a @ b", globals={"a": a, "b": b}, num_threads=torch.get_num_threads())
    return 2.0 * size**3 / min(timer.blocked_autorange(min_run_time=seconds).times) / 1e9
