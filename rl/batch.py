"""Scored groups -> training tokens -> packed micro-batches. The only place that shifts tokens.
Two index spaces. A *row* is one trained token: [N] vectors of a TrainBatch hold a number for each row, chain after
chain, and logprobs[n] scores the token of row n. A *position* is a slot of a packed forward pass, [T]: row n is
predicted by the position one before its token, named by `MicroBatch.predictors`."""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Self

import torch
from torch import Tensor

from rewards.errors import Fault
from rewards.form import soft_overlong
from rl.advantages import MIN_STD
from rl.attention import VarlenPlan
from rollout.types import Chain, Group


@dataclass(frozen=True)
class TrainBatch:
    """Chains of one step with one row for each sampled token. S = chains kept, N = rows."""

    token_ids: list[Tensor]  # S of [T_s] int64, prompt first
    row_bounds: list[int]  # [S + 1]: rows of chain s are row_bounds[s] to row_bounds[s + 1]
    targets: Tensor  # [N] int64, the token of each row
    indices: Tensor  # [N] int64, where in its chain the token stands (1 or more)
    sequence_ids: Tensor  # [N] int64, which chain
    sampler_logprobs: Tensor  # [N] float32, NaN where the sampler gave none
    ages: Tensor  # [N] int64, versions between the token's weights and the learner's: 0 = fresh
    group_ids: Tensor  # [S] int64, ascending
    rewards: Tensor  # [S] float64
    parts: Tensor  # [S, P] float64, what the rewards were composed of
    dropped: int = 0  # chains left out: without a reward's worth of company, or overlong
    no_variance: int = 0  # groups whose rewards are all equal

    @property
    def sequences(self) -> list[int]:
        return list(range(len(self.token_ids)))

    def to(self, device: torch.device) -> Self:
        """The same batch with every tensor on a device; micro-batches are made where their batch is."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, token_ids=[ids.to(device) for ids in self.token_ids], **moved)

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything by name, on the CPU, for another rank; `from_tensors` makes the same batch of it."""
        plain = {k: v.clone(memory_format=torch.contiguous_format) for k, v in vars(self).items() if torch.is_tensor(v)}
        lengths = torch.tensor([len(ids) for ids in self.token_ids], dtype=torch.long)
        counts = torch.tensor([self.dropped, self.no_variance])
        ids, bounds = torch.cat([torch.arange(0), *self.token_ids]), torch.tensor(self.row_bounds)
        return plain | {"token_ids": ids, "lengths": lengths, "row_bounds": bounds, "counts": counts}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        lengths, (dropped, no_variance) = tensors.pop("lengths").tolist(), tensors.pop("counts").tolist()
        ids, bounds = list(torch.split(tensors.pop("token_ids"), lengths)), tensors.pop("row_bounds").tolist()
        return cls(token_ids=ids, row_bounds=bounds, dropped=dropped, no_variance=no_variance, **tensors)

    def rows_of(self, sequences: Sequence[int]) -> Tensor:
        """The rows of some chains, in their order, [n] int64."""
        spans = [torch.arange(self.row_bounds[s], self.row_bounds[s + 1]) for s in sequences]
        return torch.cat([torch.arange(0), *spans]).to(self.targets.device)


@dataclass(frozen=True)
class MicroBatch(VarlenPlan):
    """One forward pass, which is its own plan: S chains end to end without padding, T positions, N rows."""

    input_ids: Tensor  # [1, T] int64
    position_ids: Tensor  # [1, T] int64, restarts at 0 with each chain
    predictors: Tensor  # [N] int64, the position whose output predicts each row
    rows: Tensor  # [N] int64, the rows in the TrainBatch
    counts: bool = True  # False: it only keeps this rank in step with the others


def build_batch(
    groups: Sequence[Group],
    version: int,
    company: int = 2,
    no_variance: str = "keep",
    overlong: str = "none",
    max_tokens: int = 0,
    parts: Sequence[str] = (),
) -> TrainBatch:
    """Training rows of one step's chains. Those without a reward leave (error, skipped; a partial rollout, which is
    no episode; with overlong `filter` what the cap cut), then groups with fewer than `company` left and, unless
    `no_variance` is keep, those whose rewards are equal. Overlong `soft` takes up to 1 off over the last fifth of
    `max_tokens`. `parts` names the rewards that make up a composed one."""
    kept: list[tuple[Chain, int, list[float]]] = []
    dropped = flat = 0
    for group_id, group in enumerate(groups):
        found: list[tuple[Chain, int, list[float]]] = []
        for chain in group.chains:
            score, cut = chain.score, overlong == "filter" and chain.finish_reason == "length"
            if score is None or score.value is None or chain.finish_reason in ("abort", "error"):
                continue
            dropped += cut
            if not cut:
                late = soft_overlong(chain.sampled_count, max_tokens, max_tokens // 5) if overlong == "soft" else 0.0
                shares = [score.parts.get(name, 0.0) for name in parts] or [score.value]
                found.append((chain, group_id, [score.value + late, *shares, *([late] if overlong == "soft" else [])]))
        scores = torch.tensor([c.score.value for c, *_ in found if c.score], dtype=torch.float64)
        same = len(found) > 1 and float(scores.std()) < MIN_STD  # before any punishment, as rl.metrics.alike
        flat += same
        if len(found) < company:
            dropped += len(found)
        elif not same or no_variance == "keep":
            kept += found
    batch = flatten([chain for chain, *_ in kept], version, [group_id for _, group_id, _ in kept])
    values = torch.tensor([v for *_, v in kept], dtype=torch.float64).reshape(len(kept), -1 if kept else 2)
    return replace(batch, rewards=values[:, 0], parts=values[:, 1:], dropped=dropped, no_variance=flat)


def flatten(chains: Sequence[Chain], version: int, group_ids: list[int] | None = None) -> TrainBatch:
    """Rows of some chains, without advantages. What is trained comes from `sampled` alone, never from token ids: the
    end-of-sequence token is trained also where it is the padding token. Raises Fault for a chain whose first token is
    marked as sampled: nothing predicts it."""
    for chain in chains:
        if chain.sampled[:1] == [True]:
            raise Fault(f"chain {chain.id}: its first token is marked as sampled, but nothing predicts it")

    def of_tokens(values: Iterable[Sequence[float]], dtype: torch.dtype = torch.long) -> Tensor:
        return torch.tensor([value for each in values for value in each], dtype=dtype)

    lengths = [len(c.token_ids) for c in chains]
    sampled = of_tokens((c.sampled for c in chains), torch.bool)
    token_ids = of_tokens(c.token_ids for c in chains)
    return TrainBatch(
        token_ids=list(torch.split(token_ids, lengths)),
        row_bounds=[0, *accumulate(sum(c.sampled) for c in chains)],
        targets=token_ids[sampled],
        indices=of_tokens(range(length) for length in lengths)[sampled],
        sequence_ids=torch.repeat_interleave(torch.tensor(lengths, dtype=torch.long))[sampled],
        sampler_logprobs=of_tokens((c.sampler_logprobs for c in chains), torch.float32)[sampled],
        ages=version - of_tokens(c.token_versions() for c in chains)[sampled],
        group_ids=torch.tensor(range(len(chains)) if group_ids is None else group_ids, dtype=torch.long),
        rewards=torch.zeros(len(chains), dtype=torch.float64),
        parts=torch.zeros(len(chains), 0, dtype=torch.float64),
    )


def split_minibatches(batch: TrainBatch, n: int) -> list[list[int]]:
    """Chain indices of at most `n` minibatches of whole groups, as equal in groups as can be; none is empty."""
    groups = sorted(set(batch.group_ids.tolist()))
    n = min(n, len(groups))
    part_of = {group: i * n // len(groups) for i, group in enumerate(groups)}
    parts: list[list[int]] = [[] for _ in range(n)]
    for sequence, group in enumerate(batch.group_ids.tolist()):
        parts[part_of[group]].append(sequence)
    return parts


def pack(
    batch: TrainBatch, sequences: Sequence[int], tokens_per_microbatch: int, rank: int = 0, ranks: int = 1
) -> list[MicroBatch]:
    """Micro-batches of at most so many tokens, chains in order; a longer one has its own, one without rows none.
    Of several ranks each has its share of the chains and as many micro-batches as the others: where it lacks some, the
    shortest chain stands in, not counted."""
    chains = [s for s in sequences if batch.row_bounds[s] < batch.row_bounds[s + 1]]
    lengths = [len(batch.token_ids[s]) for s in chains]
    shares: list[list[list[int]]] = []
    for share in balance(lengths, ranks):
        bins: list[list[int]] = []
        room = 0
        for i in share:
            if not bins or lengths[i] > room:
                bins.append([])
                room = tokens_per_microbatch
            bins[-1].append(chains[i])
            room -= lengths[i]
        shares.append(bins)
    micros = [_micro_batch(batch, bins) for bins in shares[rank]]
    while len(micros) < max(map(len, shares)):
        micros.append(_micro_batch(batch, [chains[lengths.index(min(lengths))]], counts=False))
    return micros


def balance(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Indices of chains of these lengths in `parts` shares of nearly as many tokens: the longest first, each to the
    share that is lightest by then; in a share they ascend. The largest differ by at most the longest chain."""
    shares: list[list[int]] = [[] for _ in range(parts)]
    heap = [(0, part) for part in range(parts)]
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        load, part = heap[0]
        shares[part].append(i)
        heapq.heapreplace(heap, (load + lengths[i], part))
    return [sorted(share) for share in shares]


def _micro_batch(batch: TrainBatch, sequences: list[int], counts: bool = True) -> MicroBatch:
    device, bounds = batch.targets.device, batch.row_bounds
    lengths = [len(batch.token_ids[s]) for s in sequences]
    starts = [0, *accumulate(lengths)]
    # The one shift: the token at index t of its chain is predicted by the output at t - 1.
    predictors = [
        batch.indices[bounds[s] : bounds[s + 1]] - 1 + start for s, start in zip(sequences, starts[:-1], strict=True)
    ]
    return MicroBatch(
        input_ids=torch.cat([batch.token_ids[s] for s in sequences]).unsqueeze(0),
        position_ids=torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0).to(device),
        cu_seq_lens=torch.tensor(starts, dtype=torch.int32, device=device),
        lengths=lengths,
        predictors=torch.cat(predictors),
        rows=batch.rows_of(sequences),
        counts=counts,
    )
