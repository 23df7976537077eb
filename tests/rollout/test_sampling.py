"""Request seeds: stable, and different wherever anything differs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rollout.sampling import SamplingParams, request_seed


def test_seed_is_the_same_in_every_process() -> None:
    # blake2b of "0|1|p|2|0", 8 bytes, big-endian, mod 2**31: Python's own hash() would differ from run to run
    assert request_seed(0, 1, "p", 2) == 1074355230


def test_seed_depends_on_every_part_and_fits_31_bits() -> None:
    parts = [(r, s, p, k, g) for r in (0, 1) for s in (1, 11) for p in ("1", "11") for k in (0, 1) for g in (0, 1)]
    seeds = [request_seed(*part) for part in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize(
    "change",
    [
        {"top_p": 0.9},
        {"top_k": 1},
        {"min_p": 0.1},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -0.1},
        {"repetition_penalty": 1.1},
    ],
)
def test_plain_is_temperature_alone(change: dict[str, float]) -> None:
    params = SamplingParams(max_tokens=4, stop_ids=(2,), seed=0, temperature=0.3)
    assert params.plain
    assert not replace(params, **change).plain  # type: ignore[arg-type]
