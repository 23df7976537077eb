"""What a launcher may ask of `python -m rl.train`."""

from __future__ import annotations

import pytest

from rewards.errors import BadInput
from rl.train import check_world


@pytest.mark.parametrize(
    "env",
    [{}, {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}],  # plain; torchrun with one
)
def test_one_process_is_a_world_that_needs_no_group(env: dict[str, str]) -> None:
    check_world(env)
    assert "LOCAL_RANK" not in env


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"MASTER_ADDR": "10.0.0.1"}, "MASTER_ADDR=10.0.0.1 is set without WORLD_SIZE"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1"}, "WORLD_SIZE=2"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE="),
    ],
)
def test_other_worlds_are_refused(env: dict[str, str], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        check_world(env)
