"""What a configuration may state of a machine, and what becomes of it elsewhere."""

from __future__ import annotations

import pytest

from rewards.errors import BadInput
from rollout.server.hardware import Gpu, Hardware, check_stated, stated_hardware

CPU = Hardware(cores=2, memory_gb=24.0)
L4 = Hardware(cores=8, memory_gb=64.0, gpus=(Gpu("NVIDIA L4", 22.5),))


@pytest.mark.parametrize(
    ("here", "gpus", "memory", "sizes"),
    [
        (CPU, None, None, []),
        (CPU, 1, 24.0, [24.0]),
        (CPU, 0, 24.0, []),
        (CPU, 0, None, []),
        (L4, None, None, [22.5]),
        (L4, None, 80.0, [80.0]),
        (L4, 2, None, [22.5, 22.5]),
        (L4, 0, None, []),
    ],
)
def test_what_is_stated_wins_and_null_is_what_is_here(
    here: Hardware, gpus: int | None, memory: float | None, sizes: list[float]
) -> None:
    planned = stated_hardware(here, gpus, memory)
    assert [gpu.memory_gb for gpu in planned.gpus] == sizes
    assert planned.cores == here.cores


@pytest.mark.parametrize(("gpus", "memory"), [(None, 24.0), (1, None)])
def test_half_a_statement_is_refused_where_the_other_half_cannot_be_asked(
    gpus: int | None, memory: float | None
) -> None:
    with pytest.raises(BadInput, match="no GPU here"):
        stated_hardware(CPU, gpus, memory)


@pytest.mark.parametrize(("gpus", "memory"), [(None, None), (1, None), (1, 24.0), (None, 22.5)])
def test_a_card_of_24_gb_may_show_a_little_less(gpus: int | None, memory: float | None) -> None:
    check_stated(L4, gpus, memory)


@pytest.mark.parametrize(
    ("here", "gpus", "memory", "words"),
    [
        (CPU, 1, 24.0, "hardware.gpus=1 is stated and 0 can be used here"),
        (L4, 0, None, "hardware.gpus=0 is stated and 1"),
        (L4, 2, 24.0, "hardware.gpus=2 is stated and 1"),
        (L4, 1, 80.0, r"hardware.gpu_memory_gb=80 is stated and GPU 0 \(NVIDIA L4\) has 22.5"),
        (L4, None, 16.0, "hardware.gpu_memory_gb=16"),
    ],
)
def test_a_start_on_another_machine_is_refused(
    here: Hardware, gpus: int | None, memory: float | None, words: str
) -> None:
    with pytest.raises(BadInput, match=words) as caught:
        check_stated(here, gpus, memory)
    assert "\n" not in str(caught.value)
