from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rewards.errors import BadInput, Fault
from rl.attention import VarlenPlan, varlen_attention
from tests.rl.chains import VOCAB, small_model

LENGTHS = [5, 1, 12, 12, 11, 3, 3, 3, 12]  # neighbours as long as each other go through one call
ARCHITECTURES = ["llama", "qwen2", "qwen3"]


def packed_inputs(seed: int = 0) -> tuple[Tensor, Tensor, VarlenPlan]:
    ids = torch.randint(VOCAB, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(seed))
    positions = torch.cat([torch.arange(n) for n in LENGTHS]).unsqueeze(0)
    bounds = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)
    return ids, positions, VarlenPlan(bounds, LENGTHS)


def packed_logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    _, positions, plan = packed_inputs()
    return model(input_ids=ids, position_ids=positions, use_cache=False, varlen=plan).logits[0]


def separate_logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return torch.cat([model(input_ids=part, use_cache=False).logits[0] for part in ids.split(LENGTHS, dim=1)])


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_packed_equals_separate_in_values_and_gradients(arch: str) -> None:
    packed, separate = small_model(arch).double(), small_model(arch, "sdpa").double()
    ids, _, _ = packed_inputs()
    mine, theirs = packed_logits(packed, ids), separate_logits(separate, ids)
    torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-10)
    weights = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1)).double()
    for model, logits in ((packed, mine), (separate, theirs)):
        (logits * weights).sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    for a, b in zip(packed.parameters(), separate.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_no_token_sees_another_sample(arch: str) -> None:
    """Change one chain: its own logits move, every other chain's stay as they are to the bit."""
    model = small_model(arch)
    ids, _, plan = packed_inputs()
    with torch.no_grad():
        before = packed_logits(model, ids).split(LENGTHS)
        for changed, start in enumerate(plan.cu_seq_lens.tolist()[:-1]):
            other = ids.clone()
            other[0, start] = (other[0, start] + 1) % VOCAB
            after = packed_logits(model, other).split(LENGTHS)
            for s, (a, b) in enumerate(zip(before, after, strict=True)):
                assert torch.equal(a, b) == (s != changed)


def test_no_token_sees_its_future() -> None:
    model = small_model()
    ids, _, plan = packed_inputs()
    at = plan.cu_seq_lens.tolist()[2] + 6  # in the middle of the third chain
    other = ids.clone()
    other[0, at] = (other[0, at] + 1) % VOCAB
    with torch.no_grad():
        a, b = packed_logits(model, ids), packed_logits(model, other)
    assert torch.equal(a[:at], b[:at])
    assert not torch.equal(a[at], b[at])


def test_sliding_windows_are_kept() -> None:
    window: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
    model, eager = small_model("qwen2", **window).double(), small_model("qwen2", "eager", **window).double()
    full = small_model("qwen2").double()
    ids, _, _ = packed_inputs()
    with torch.no_grad():
        mine = packed_logits(model, ids)
        # eager attention takes its softmax in fp32 whatever the model
        torch.testing.assert_close(mine, separate_logits(eager, ids), atol=1e-5, rtol=1e-4)
        assert not torch.allclose(mine, packed_logits(full, ids))


def test_a_call_without_a_plan_or_with_a_mask_is_a_fault() -> None:
    model = small_model()
    ids, positions, plan = packed_inputs()
    with pytest.raises(Fault, match="varlen plan"):
        model(input_ids=ids, position_ids=positions, use_cache=False)
    with pytest.raises(Fault, match="varlen plan"):
        model(input_ids=ids, attention_mask=torch.ones(1, 1, 44, 44), use_cache=False, varlen=plan)


def test_attention_that_it_cannot_compute_is_refused() -> None:
    _, _, plan = packed_inputs()
    query = torch.zeros(1, 2, 44, 4)
    with pytest.raises(BadInput, match="softcap"):
        varlen_attention(torch.nn.Identity(), query, query, query, None, varlen=plan, softcap=30.0)
