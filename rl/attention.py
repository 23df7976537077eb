"""Attention over packed chains, one seam for CPU and GPU: `ponder_varlen`, registered with transformers.
No mask, no cache: the chains' lengths travel as a keyword through the model's forward to the attention function. On
CUDA in half precision that is torch's varlen_attn, elsewhere SDPA calls (docs/decisions/packing.md)."""

from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from rewards.errors import BadInput, Fault

NAME = "ponder_varlen"  # what the model's config calls it while it is in memory; never written to disk


@dataclass(frozen=True)
class VarlenPlan:
    """How one packed row of T tokens falls into S chains: the same once for kernels and once for loops."""

    cu_seq_lens: Tensor  # [S + 1] int32, on the device of the pass, e.g. [0, 120, 310]
    lengths: list[int]  # [S]


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    varlen: VarlenPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each chain; query [1, H, T, D], key and value [1, H_kv, T, D] -> [1, T, H, D]. Raises
    Fault without a plan (chains would see each other), BadInput for a kind of attention that it can't compute."""
    if varlen is None or attention_mask is not None or query.shape[0] != 1:
        raise Fault(f"{NAME} takes one packed row with its varlen plan and no mask; load the model with sdpa instead")
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if unknown or dropout:
        lack = ", ".join(unknown) or "dropout"
        raise BadInput(f"{type(module).__name__} needs {lack}, which {NAME} does not compute")
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        return _flash(query, key, value, varlen, scaling, sliding_window), None
    outputs, window = [], sliding_window
    runs = [(len(list(run)), length) for length, run in groupby(varlen.lengths)]  # chains of one length go together
    # Cut by one split, whose backward pass is one copy; a slice's would fill a whole row with zeros, each time.
    rows = (x[0].transpose(0, 1).split([count * length for count, length in runs]) for x in (query, key, value))
    for (count, length), *parts in zip(runs, *rows, strict=True):
        q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in parts)  # [count, H, length, D]
        band = None
        if window is not None and window < length:  # each token sees itself and the window - 1 before it
            full = torch.ones(length, length, dtype=torch.bool, device=q.device)
            band = full.tril() & full.triu(1 - window)
        gqa = q.shape[1] != k.shape[1]
        out = F.scaled_dot_product_attention(q, k, v, band, 0.0, band is None, scale=scaling, enable_gqa=gqa)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).unsqueeze(0), None


def _flash(q: Tensor, k: Tensor, v: Tensor, plan: VarlenPlan, scaling: float | None, window: int | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    bounds, longest = plan.cu_seq_lens, max(plan.lengths)
    left = -1 if window is None or window >= longest else window - 1  # the window counts the token itself
    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # [T, H, D]
    gqa = q.shape[1] != k.shape[1]
    out = varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scaling, window_size=(left, 0), enable_gqa=gqa)
    return cast(Tensor, out).unsqueeze(0)


AttentionInterface.register(NAME, varlen_attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)  # transformers would build one of T x T
