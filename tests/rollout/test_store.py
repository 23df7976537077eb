"""samples.jsonl.zst: exact round trips, torn tails, cuts that keep the bytes before."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from rewards.errors import Fault
from rewards.types import Problem, Score
from rollout.store import SampleStore, chain_from_json, chain_to_json, read, truncate
from rollout.types import Chain, Group

PROBLEM = Problem(
    "p1", "countdown", [{"role": "user", "content": "héllo\u2028"}], {"n": [1, 2]}, "key", 3.0, "sub", "own"
)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


def a_chain(logprobs: list[float] | None = None, score: Score | None = None) -> Chain:
    made = [-0.1, -1e-300] if logprobs is None else logprobs
    count = len(made)
    return Chain(
        "1/p1/0", "p1", [5, *range(count)], 1, [False, *[True] * count], [0.0, *made], [(1, 3)], "forced", score
    )


def groups(step: int, count: int = 2) -> list[Group]:
    score = Score(0.5, False, "wrong", {"format": 0.1}, "1/p1/0", "why")
    return [Group(PROBLEM, [a_chain(score=score), a_chain([-0.25 * i])], step) for i in range(count)]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    store = SampleStore(tmp_path / "samples.jsonl.zst")
    for step in (1, 2, 3):
        store.append(step, groups(step))
    return store.path


def test_what_is_written_is_read_back(written: Path) -> None:
    assert list(read(written)) == [(step, groups(step)) for step in (1, 2, 3)]
    assert list(read(written, step=2)) == [(2, groups(2))]
    assert list(read(written, step=9)) == []


@given(logprobs=st.lists(FLOATS), value=st.none() | FLOATS)
def test_floats_survive_exactly(logprobs: list[float], value: float | None) -> None:
    chain = a_chain(logprobs, Score(value, True, "ok", {"a": 0.1 + 0.2}))
    assert chain_from_json(json.loads(json.dumps(chain_to_json(chain), allow_nan=False))) == chain


def test_nan_logprobs_survive_as_null() -> None:
    data = chain_to_json(a_chain([math.nan, -1.0]))
    assert data["sampler_logprobs"] == [0.0, None, -1.0]
    assert math.isnan(chain_from_json(data).sampler_logprobs[1])


def test_other_nans_are_a_fault_and_write_nothing(tmp_path: Path) -> None:
    store = SampleStore(tmp_path / "s.zst")
    with pytest.raises(Fault, match="step 4"):
        store.append(4, [Group(PROBLEM, [a_chain(score=Score(math.nan, False, "ok"))], 4)])
    assert not store.path.exists()


def test_it_is_ordinary_zstd_of_ordinary_json(written: Path) -> None:
    with open(written, "rb") as file:
        text = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read().decode()
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["step"] for row in rows] == [1, 1, 2, 2, 3, 3]
    assert rows[0]["chains"][0]["sampled"] == [0, 1, 1]


def test_a_step_without_groups_is_a_step(tmp_path: Path) -> None:
    store = SampleStore(tmp_path / "s.zst")
    store.append(1, [])
    store.append(2, groups(2))
    assert list(read(store.path)) == [(1, []), (2, groups(2))]


def test_a_torn_tail_is_dropped_at_every_cut(written: Path) -> None:
    whole = written.read_bytes()
    truncate(written, 2)
    two = written.stat().st_size
    for size in range(two, len(whole), 7):
        written.write_bytes(whole[:size])
        assert [step for step, _ in read(written)] == [1, 2]
        assert truncate(written, 9) == 2
        assert written.read_bytes() == whole[:two]


def test_truncate_keeps_bytes_and_appending_goes_on(written: Path) -> None:
    whole = written.read_bytes()
    assert truncate(written, 2) == 2
    assert whole.startswith(written.read_bytes())
    SampleStore(written).append(3, groups(3))
    assert written.read_bytes() == whole
    assert truncate(written, 0) == 0
    assert written.read_bytes() == b""
    assert truncate(written.with_name("none.zst"), 5) == 0


def test_damage_is_told_from_a_torn_tail(written: Path) -> None:
    whole = bytearray(written.read_bytes())
    truncate(written, 1)
    one = written.stat().st_size
    whole[one + 20] ^= 0xFF
    written.write_bytes(whole)
    with pytest.raises(Fault, match=f"damaged behind byte {one}"):
        list(read(written))
    assert truncate(written, 3) == 1
    assert written.stat().st_size == one


def test_a_failed_write_leaves_no_half_frame(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = written.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        SampleStore(written).append(4, groups(4))
    assert written.read_bytes() == before


def test_frames_larger_than_a_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.store.READ_SIZE", 16)
    store = SampleStore(tmp_path / "s.zst")
    store.append(1, groups(1, count=5))
    store.append(2, groups(2))
    assert list(read(store.path)) == [(1, groups(1, count=5)), (2, groups(2))]
