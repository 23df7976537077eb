from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rl.config import LoraConfig
from rl.flops import (
    ModelShape,
    backward_flops,
    forward_flops,
    measure_peak_gflops,
    rollout_flops,
    training_flops,
)
from rl.model import add_adapter
from tests.rl.chains import VOCAB, small_model

TINY = ModelShape(linear=10, head=7, attention=3)


def test_hand_worked() -> None:
    """2 chains of 2 and 3 tokens: 5 tokens x 20, 4 through the head x 14, pairs 3 + 6 x 12."""
    assert forward_flops(TINY, [2, 3], head_tokens=4) == 5 * 20 + 4 * 14 + 9 * 12
    assert training_flops(TINY, [2, 3], 4) == 3 * 264
    assert training_flops(TINY, [2, 3], 4, checkpointing=True) == 4 * 264


def test_rollout_by_hand_and_as_a_slow_loop() -> None:
    """Each token but the last goes through once and sees itself and all before it; the head runs per sampled token."""

    def slow(prompt: int, length: int) -> float:
        body = sum(20 + 12 * (t + 1) for t in range(length - 1))
        return body + 14 * (length - prompt)

    assert rollout_flops(TINY, [(1, 3)]) == 2 * 20 + 3 * 12 + 2 * 14
    assert rollout_flops(TINY, [(4, 9), (2, 5)]) == slow(4, 9) + slow(2, 5)


def above_diagonal(shape: ModelShape) -> float:
    """Forward FLOPs of the pairs of 3 x 40 tokens that causal attention skips, which torch's counter counts."""
    return 4.0 * shape.attention * 3 * (40 * 40 - 40 * 41 / 2)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_within_two_percent_of_torchs_own_count(arch: str) -> None:
    """Full attention, as the counter counts every kernel; eager, since it knows no fused CPU kernel."""
    model = small_model(arch, "eager", tie_word_embeddings=False)
    ids = torch.randint(VOCAB, (3, 40))
    with FlopCounterMode(display=False) as counter:
        logits = model(ids, use_cache=False).logits
        forward = counter.get_total_flops()
        logits.sum().backward()
    shape = ModelShape.of(model)
    counted = forward_flops(shape, [40] * 3, 120) + above_diagonal(shape)
    assert counted == pytest.approx(forward, rel=0.02)
    assert 3 * counted == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["down_proj"], ["o_proj", "gate_proj"]])
@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_lora_within_two_percent_of_torchs_own_count(arch: str, targets: Literal["all-linear"] | list[str]) -> None:
    model = small_model(arch, "eager", tie_word_embeddings=False, num_hidden_layers=8)
    add_adapter(model, LoraConfig(rank=6, targets=targets), 0, "base")
    ids = torch.randint(VOCAB, (3, 40))
    with FlopCounterMode(display=False) as counter:
        logits = model(ids, use_cache=False).logits
        forward = counter.get_total_flops()
        logits.sum().backward()
    shape = ModelShape.of(model)
    assert shape.adapters > 0
    assert forward_flops(shape, [40] * 3, 120) + above_diagonal(shape) == pytest.approx(forward, rel=0.02)
    backward = counter.get_total_flops() - forward
    lowest = 8 * shape.attention / 8 * 3 * 40 * 40  # the lowest layer's attention, where nothing below it is adapted
    counted = backward_flops(shape, [40] * 3, 120) + 2 * above_diagonal(shape)
    assert counted - (lowest if targets not in BELOW_ATTENTION else 0) == pytest.approx(backward, rel=0.02)


BELOW_ATTENTION = ("all-linear", ["q_proj", "v_proj"])


def test_lora_by_hand() -> None:
    """As TINY with 4 weights of adapters; 10 frozen weights and 3 more products fall away, and the head's own."""
    lora = replace(TINY, adapters=4, skipped=13, frozen_head=True)
    assert forward_flops(lora, [2, 3], 4) == 5 * 28 + 4 * 14 + 9 * 12
    assert backward_flops(lora, [2, 3], 4) == 5 * 2 * (2 * 14 - 13) + 4 * 14 + 9 * 24
    assert training_flops(lora, [2, 3], 4, checkpointing=True) == 2 * 304 + 422
    assert backward_flops(TINY, [2, 3], 4) == 2 * forward_flops(TINY, [2, 3], 4)
    assert rollout_flops(lora, [(1, 3)]) == rollout_flops(TINY, [(1, 3)])  # the sampler's weights are merged


def test_a_tied_head_is_counted_once_and_the_embedding_never() -> None:
    tied, untied = (ModelShape.of(small_model(tie_word_embeddings=t)) for t in (True, False))
    assert tied == untied
    assert tied.head == VOCAB * 32


def test_the_probe_measures_something() -> None:
    assert measure_peak_gflops(seconds=0.01) > 0.1
