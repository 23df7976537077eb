from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rewards.errors import Fault
from rl.batch import TrainBatch, balance, build_batch, flatten, pack, split_minibatches
from rl.metrics import alike
from rollout.types import Chain, Group
from tests.rl.chains import make_chain, make_group, random_groups

PAD = EOS = 0


def test_rows_by_hand() -> None:
    """Prompt [7, 8], sampled 5, inserted 6, sampled 4 and the end, which is also the padding token."""
    chain = make_chain([7, 8, 5, 6, 4, EOS], 2, inserted=(3,), versions=((2, 4), (4, 5)))
    other = make_chain([9, 3, EOS], 1, versions=((1, 5),), value=1.0)
    batch = build_batch([make_group([chain, other])], 5)
    assert batch.targets.tolist() == [5, 4, EOS, 3, EOS]
    assert batch.indices.tolist() == [2, 4, 5, 1, 2]
    assert batch.sequence_ids.tolist() == [0, 0, 0, 1, 1]
    assert batch.row_bounds == [0, 3, 5]
    assert batch.ages.tolist() == [1, 0, 0, 0, 0]
    assert batch.sampler_logprobs.tolist() == [-3.0] * 5
    assert (batch.rewards.tolist(), batch.parts.tolist()) == ([0.0, 1.0], [[0.0], [1.0]])


def test_packing_by_hand() -> None:
    chains = [make_chain([7, 8, 5, 6, 4, EOS], 2, inserted=(3,)), make_chain([9, 3, EOS], 1)]
    (micro,) = pack(flatten(chains, 0), [0, 1], 100)
    assert micro.input_ids.tolist() == [[7, 8, 5, 6, 4, EOS, 9, 3, EOS]]
    assert micro.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2]]
    assert micro.cu_seq_lens.dtype == torch.int32
    assert micro.cu_seq_lens.tolist() == [0, 6, 9]
    assert micro.lengths == [6, 3]
    assert micro.predictors.tolist() == [1, 3, 4, 6, 7]  # one before each trained token
    assert micro.rows.tolist() == [0, 1, 2, 3, 4]


def test_unscored_chains_leave_and_groups_of_one_are_dropped() -> None:
    broken = make_chain([1, 2], 1, value=None)
    alone = make_group([make_chain([1, 2], 1), broken, broken])
    pair = make_group([make_chain([1, 3], 1), make_chain([1, 4], 1, value=1.0), broken])
    same = make_group([make_chain([1, 5], 1, value=1.0), make_chain([1, 6], 1, value=1.0)])
    batch = build_batch([alone, pair, same, make_group([broken, broken])], 0)
    assert batch.targets.tolist() == [3, 4, 5, 6]
    assert batch.group_ids.tolist() == [1, 1, 2, 2]
    assert (batch.dropped, batch.no_variance) == (1, 1)


def test_nothing_left_is_an_empty_batch() -> None:
    batch = build_batch([make_group([make_chain([1, 2], 1, value=None)])], 0)
    assert (len(batch.targets), batch.sequences) == (0, [])
    assert split_minibatches(batch, 2) == []
    assert pack(batch, [], 10) == []


def test_a_chain_without_prompt_is_a_fault() -> None:
    with pytest.raises(Fault, match="first token"):
        flatten([make_chain([1, 2], 0)], 0)


def test_a_chain_without_sampled_tokens_is_not_packed() -> None:
    batch = flatten([make_chain([1, 2], 2), make_chain([3, 4], 1)], 0)
    assert [m.lengths for m in pack(batch, [0, 1], 2)] == [[2]]


def test_missing_sampler_logprobs_stay_visible() -> None:
    chain = make_chain([1, 2, 3], 1)
    batch = flatten([replace(chain, sampler_logprobs=[0.0, math.nan, -1.0])], 0)
    assert batch.sampler_logprobs.isnan().tolist() == [True, False]


def test_minibatches_are_whole_groups() -> None:
    batch = build_batch(random_groups((2, 3, 2, 4, 2)), 0)
    parts = split_minibatches(batch, 2)
    assert [sorted({int(batch.group_ids[s]) for s in part}) for part in parts] == [[0, 1, 2], [3, 4]]
    assert sorted(s for part in parts for s in part) == batch.sequences
    assert len(split_minibatches(batch, 9)) == 5  # never an empty one


@given(st.integers(0, 99), st.integers(1, 60))
def test_packing_loses_and_doubles_nothing(seed: int, budget: int) -> None:
    batch = build_batch(random_groups((3, 2, 5), seed), 0)
    micros = pack(batch, batch.sequences, budget)
    assert torch.cat([m.rows for m in micros]).tolist() == list(range(len(batch.targets)))
    for micro in micros:
        assert sum(micro.lengths) <= budget or len(micro.lengths) == 1
        ids, at = micro.input_ids[0], micro.predictors
        assert ids[at + 1].tolist() == batch.targets[micro.rows].tolist()
        assert micro.position_ids[0][at + 1].tolist() == batch.indices[micro.rows].tolist()


def rewards_of(groups: list[Group], **rules: Any) -> list[float]:
    return build_batch(groups, 0, **rules).rewards.tolist()


def ended(chain: Chain, reason: Any) -> Chain:
    return replace(chain, finish_reason=reason)


def test_a_partial_rollout_is_no_episode() -> None:
    """What was broken off in the middle (for a push) leaves, scored or not; what the length cap cut is an end."""
    right, wrong = make_chain([1, 2], 1, value=1.0), make_chain([1, 3], 1)
    group = make_group([right, ended(wrong, "abort"), ended(wrong, "length"), ended(right, "error")])
    batch = build_batch([group], 0)
    assert batch.rewards.tolist() == [1.0, 0.0]
    assert batch.targets.tolist() == [2, 3]
    assert batch.dropped == 0
    assert build_batch([make_group([right, ended(wrong, "abort")])], 0).dropped == 1  # the other is alone now
    assert build_batch([make_group([right, ended(wrong, "abort")])], 0, company=1).rewards.tolist() == [1.0]


def test_overlong_chains_are_punished_softly_or_left_out() -> None:
    """A cap of 10: the last fifth begins at 8. A chain's length is what it sampled, not what was inserted."""
    chains = [make_chain([1, *range(2, 2 + n)], 1, value=1.0) for n in (8, 9, 10)]
    padded = make_chain([1, *range(2, 12)], 1, value=1.0, inserted=(1, 2))  # ten tokens, eight of them sampled
    cut = [*chains[:2], ended(chains[2], "length"), padded]
    groups = [make_group(cut)]
    assert rewards_of(groups, overlong="none", max_tokens=10) == [1.0, 1.0, 1.0, 1.0]
    assert rewards_of(groups, overlong="soft", max_tokens=10) == [1.0, 0.5, 0.0, 1.0]
    left = build_batch(groups, 0, overlong="filter", max_tokens=10)
    assert (left.rewards.tolist(), left.dropped) == ([1.0, 1.0, 1.0], 1)


def test_groups_without_variance_go_where_that_is_wanted() -> None:
    """0.1 + 0.2 is 0.3 here. Soft punishment brings no variance into a group of equal scores."""
    mixed, flat = ([make_chain([1, 2], 1, value=v) for v in values] for values in ((0.0, 1.0), (0.1 + 0.2, 0.3)))
    groups = [make_group(mixed), make_group(flat)]
    for rule, want in (("keep", [0.0, 1.0, 0.1 + 0.2, 0.3]), ("drop", [0.0, 1.0]), ("replace", [0.0, 1.0])):
        batch = build_batch(groups, 0, no_variance=rule)
        assert (batch.rewards.tolist(), batch.no_variance, batch.dropped) == (want, 1, 0)


def test_parts_of_a_composed_reward_have_a_column_each() -> None:
    """As they came, not weighed; a part that a chain lacks is 0; the punishment is a part of its own."""

    def composed(n: int, **parts: float) -> Chain:
        chain = make_chain([1, *range(2, 2 + n)], 1, value=sum(parts.values()))
        assert chain.score is not None
        return replace(chain, score=replace(chain.score, parts=parts))

    group = make_group([composed(2, right=1.0, short=0.5), composed(10, right=1.0)])
    assert build_batch([group], 0, parts=["right", "short"]).parts.tolist() == [[1.0, 0.5], [1.0, 0.0]]
    batch = build_batch([group], 0, parts=["right", "short"], overlong="soft", max_tokens=10)
    assert batch.parts.tolist() == [[1.0, 0.5, 0.0], [1.0, 0.0, -1.0]]
    assert build_batch([group], 0, overlong="soft", max_tokens=10).parts.tolist() == [[1.5, 0.0], [1.0, -1.0]]


@given(st.lists(st.integers(1, 3000), max_size=60), st.integers(1, 8))
def test_every_chain_is_in_one_share_and_shares_differ_by_one_chain_at_most(lengths: list[int], parts: int) -> None:
    shares = balance(lengths, parts)
    assert sorted(i for share in shares for i in share) == list(range(len(lengths)))
    assert all(share == sorted(share) for share in shares)
    loads = [sum(lengths[i] for i in share) for share in shares]
    assert max(loads) - min(loads) <= max(lengths, default=0)


@given(st.integers(0, 10_000), st.sampled_from([2, 4, 8]))
def test_natural_lengths_are_shared_within_five_percent(seed: int, parts: int) -> None:
    """256 chains with a long tail, cut at 512: the demo's shape."""
    rng = random.Random(seed)
    lengths = [min(512, int(rng.lognormvariate(5, 0.8)) + 8) for _ in range(256)]
    loads = [sum(lengths[i] for i in share) for share in balance(lengths, parts)]
    assert (max(loads) - min(loads)) / (sum(loads) / parts) < 0.05


@pytest.mark.parametrize("tokens", [10, 40, 1000])
def test_ranks_pack_every_chain_once_in_as_many_micro_batches(tokens: int) -> None:
    batch = build_batch(random_groups((5, 3)), 0)
    ranks = [pack(batch, batch.sequences, tokens, rank, 3) for rank in range(3)]
    assert len({len(micros) for micros in ranks}) == 1
    rows = torch.cat([micro.rows for micros in ranks for micro in micros if micro.counts])
    assert rows.sort().values.tolist() == list(range(len(batch.targets)))


def test_fewer_chains_than_ranks_leave_one_that_only_keeps_step() -> None:
    batch = flatten([make_chain([1, 2, 3, 4], 1), make_chain([5, 6], 1)], 0)
    micros = [pack(batch, [0, 1], 100, rank, 3) for rank in range(3)]
    assert [[(m.lengths, m.counts) for m in some] for some in micros] == [[([4], True)], [([2], True)], [([2], False)]]


@pytest.mark.parametrize("groups", [random_groups((3, 4)), []], ids=["chains", "none"])
def test_a_batch_arrives_at_another_rank_as_it_was(groups: list[Group]) -> None:
    batch = build_batch(groups, 3)
    there = TrainBatch.from_tensors(batch.to_tensors())
    assert vars(there).keys() == vars(batch).keys()
    for name, value in vars(batch).items():
        other = getattr(there, name)
        tensors = value if isinstance(value, list) and name == "token_ids" else [value]
        for one, two in zip(tensors, other if tensors is value else [other], strict=True):
            assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two, name


def test_a_soft_punishment_gives_no_variance_to_equal_scores() -> None:
    """DAPO replaces groups by their answers alone (eq. 11): what the loop replaces, the batch must drop."""
    group = make_group([make_chain([1, *[2] * 10], 1, value=1.0), make_chain([1, 2], 1, value=1.0)])
    assert alike(group)
    batch = build_batch([group], 0, no_variance="replace", overlong="soft", max_tokens=10)
    assert (batch.no_variance, len(batch.targets)) == (1, 0)
    assert build_batch([group], 0, overlong="soft", max_tokens=10).rewards.tolist() == [0.0, 1.0]
