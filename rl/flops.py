"""Floating-point operations of dense decoders, counted from the model's own shapes; multiply and add are two.

Counted: every linear layer, the head where it is computed, and the two matrix products of attention. Left out: norms,
rotary embeddings, softmax and the embedding look-up (under 1 % together from a width of about 512 on).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class ModelShape:
    """What the formulas need to know about a model."""

    linear: int  # weights of all linear layers but the head: each works on every token
    head: int  # weights of the output head, hidden x vocabulary
    attention: int  # layers x heads x head size

    @classmethod
    def of(cls, model: Any) -> ModelShape:
        """The shape of a transformers causal language model."""
        config = model.config.get_text_config()
        head = model.get_output_embeddings()
        linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m is not head)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(linear, head.weight.numel(), config.num_hidden_layers * config.num_attention_heads * head_dim)


def forward_flops(shape: ModelShape, lengths: Iterable[int], head_tokens: int, causal: bool = True) -> float:
    """One forward pass over chains of these lengths, with `head_tokens` positions through the head.

    Causal attention of L tokens looks at L (L + 1) / 2 pairs; `causal=False` counts all L^2, as kernels without block
    skipping compute and as torch's FlopCounterMode counts every kernel.
    """
    lengths = list(lengths)
    pairs = sum(n * (n + 1) / 2 if causal else n * n for n in lengths)
    return 2.0 * shape.linear * sum(lengths) + 2.0 * shape.head * head_tokens + 4.0 * shape.attention * pairs


def training_flops(shape: ModelShape, lengths: Iterable[int], head_tokens: int, checkpointing: bool = False) -> float:
    """Forward and backward: three times the forward pass, four with gradient checkpointing."""
    return (4.0 if checkpointing else 3.0) * forward_flops(shape, lengths, head_tokens)


def rollout_flops(shape: ModelShape, prompt_lengths: Sequence[int], lengths: Sequence[int]) -> float:
    """Prefill and decoding with a KV cache of chains of `lengths` tokens, their prompts included.

    Each token but the last goes through the model once and attends to those before it, so prefill and decoding cost
    what one causal pass costs; the head runs for sampled tokens. A prompt shared through a prefix cache is still
    counted for each chain.
    """
    sampled = sum(lengths) - sum(prompt_lengths)
    return forward_flops(shape, [n - 1 for n in lengths], sampled)


def measure_peak_gflops(
    seconds: float = 0.3, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> float:
    """Matrix-multiplication speed of this machine with the threads set now, GFLOP/s: the denominator of `mfu`."""
    device = torch.device(device)
    size = 1024 if device.type == "cpu" else 8192
    a, b = torch.randn(size, size, device=device, dtype=dtype), torch.randn(size, size, device=device, dtype=dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best / 1e9
