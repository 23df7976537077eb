"""Attention over packed chains, one seam for CPU and GPU: `ponder_varlen`, registered with transformers.

No mask is built and no cache is kept: the chains' lengths travel as a keyword through the model's forward to the
attention function. On CUDA in half precision that is torch's varlen_attn. Elsewhere chains of similar length are padded
on the right to one SDPA call: under a causal mask no real token sees what stands to its right, so that takes no mask.
docs/decisions/packing.md has the alternatives and their times.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from rewards.errors import BadInput, Fault

NAME = "ponder_varlen"
"""What the model's config calls this attention while it is in memory; never written to disk."""

BUCKET_RATIO = 0.8
"""A chain joins a bucket when it has at least this share of the bucket's longest: the fastest of those measured."""


@dataclass(frozen=True)
class VarlenPlan:
    """How one packed row of T tokens falls into S chains; made once a forward pass, read by every layer."""

    cu_seq_lens: Tensor  # [S + 1] int32, on the device of the pass
    lengths: list[int]  # [S]

    @property
    def max_length(self) -> int:
        """Tokens of the longest chain."""
        return max(self.lengths)

    @cached_property
    def buckets(self) -> tuple[list[Tensor], Tensor]:
        """(gathers, scatter): each gather [B, L] picks B chains of similar length from the packed row, padding repeats
        a chain's last position; scatter [T] finds the packed positions in the buckets laid end to end."""
        starts = [0, *accumulate(self.lengths)]
        scatter = torch.empty(starts[-1], dtype=torch.long)
        gathers, offset = [], 0
        for members in similar_lengths(self.lengths):
            columns = torch.arange(self.lengths[members[0]])
            rows = []
            for s in members:
                rows.append(starts[s] + columns.clamp(max=self.lengths[s] - 1))
                scatter[starts[s] : starts[s + 1]] = offset + columns[: self.lengths[s]]
                offset += len(columns)
            gathers.append(torch.stack(rows).to(self.cu_seq_lens.device))
        return gathers, scatter.to(self.cu_seq_lens.device)


def padded_slots(lengths: list[int]) -> int:
    """Slots that the buckets of these chains take, padding included."""
    return sum(lengths[members[0]] * len(members) for members in similar_lengths(lengths))


def similar_lengths(lengths: list[int], ratio: float = BUCKET_RATIO) -> list[list[int]]:
    """Chain indices by falling length, cut where a chain is shorter than `ratio` of its bucket's first."""
    groups: list[list[int]] = []
    for s in sorted(range(len(lengths)), key=lambda s: -lengths[s]):
        if not groups or lengths[s] < ratio * lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(s)
    return groups


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
    """Causal attention within each chain; query [1, H, T, D], key and value [1, H_kv, T, D] -> [1, T, H, D].

    Raises Fault without a plan (chains would see each other), BadInput for a kind of attention that it can't compute.
    """
    if varlen is None or attention_mask is not None or query.shape[0] != 1:
        raise Fault(f"{NAME} takes one packed row with its varlen plan and no mask; load the model with sdpa instead")
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if unknown or dropout:
        raise BadInput(
            f"{type(module).__name__} needs {', '.join(unknown) or 'dropout'}, which {NAME} does not compute"
        )
    window = sliding_window if sliding_window is not None and sliding_window < varlen.max_length else None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, H, D]
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16):
        out = _flash(q, k, v, varlen, scaling, window)
    else:
        out = _bucketed(q, k, v, varlen, scaling, window)
    return out.unsqueeze(0), None


def _flash(q: Tensor, k: Tensor, v: Tensor, plan: VarlenPlan, scaling: float | None, window: int | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    bounds, longest = plan.cu_seq_lens, plan.max_length
    left = -1 if window is None else window - 1  # the window counts the token itself
    gqa = q.shape[1] != k.shape[1]
    return varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scaling, window_size=(left, 0), enable_gqa=gqa)  # type: ignore[return-value]


def _bucketed(q: Tensor, k: Tensor, v: Tensor, plan: VarlenPlan, scaling: float | None, window: int | None) -> Tensor:
    outputs = []
    gathers, scatter = plan.buckets
    for gather in gathers:
        size, length = gather.shape
        index = gather.flatten()
        a, b, c = (x.index_select(0, index).unflatten(0, (size, length)).transpose(1, 2) for x in (q, k, v))
        band = None if window is None or window >= length else _band(length, window, q.device)
        out = F.scaled_dot_product_attention(
            a, b, c, attn_mask=band, is_causal=band is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, scatter)


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """[L, L] bool: each token sees itself and the window - 1 before it."""
    full = torch.ones(length, length, dtype=torch.bool, device=device)
    return full.tril() & full.triu(1 - window)


def register() -> None:
    """Make `attn_implementation="ponder_varlen"` known to transformers; again does no harm."""
    AttentionInterface.register(NAME, varlen_attention)
    AttentionMaskInterface.register(NAME, _no_mask)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Packed rows need no mask; transformers would build one of T x T."""
