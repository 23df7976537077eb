"""What a launcher may ask of `python -m rl.train`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rewards.errors import BadInput
from rl.train import check_world
from rollout.server.argv import SPIN_COUNT, SPIN_VARIABLE

RANK_1 = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    "env",
    [{}, {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}],  # plain; torchrun with one
)
def test_one_process_is_a_world_that_needs_no_group(env: dict[str, str]) -> None:
    assert check_world(env) == (0, 1)
    assert "LOCAL_RANK" not in env


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"MASTER_ADDR": "10.0.0.1"}, "MASTER_ADDR=10.0.0.1 is set without WORLD_SIZE"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1"}, "WORLD_SIZE=2, RANK=, "),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE="),
        (RANK_1 | {"RANK": "one"}, "RANK=one"),
        (RANK_1 | {"LOCAL_WORLD_SIZE": "1"}, "1 of 2 ranks run on this machine: one machine so far"),
        ({"ACCELERATE_USE_FSDP": "true"}, "train.sharding=fsdp2"),
        (RANK_1 | {"ACCELERATE_USE_DEEPSPEED": "true"}, "ACCELERATE_USE_DEEPSPEED is set"),
    ],
)
def test_other_worlds_are_refused(env: dict[str, str], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        check_world(env)


def test_a_rank_knows_its_place() -> None:
    assert check_world(RANK_1 | {"LOCAL_WORLD_SIZE": "2"}) == (1, 2)


def test_one_process_refuses_to_shard_and_starts_no_process_group(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: {path: nowhere}\ntask: letters\ntrain: {sharding: fsdp2}\n")
    code = """if True:
    import sys
    from rl.exits import run_command
    from rl.train import train
    print(run_command(lambda: train("c.yaml")), run_command(lambda: train("c.yaml", ["train.sharding=none"])))
    import torch.distributed
    print(torch.distributed.is_initialized())
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.stdout.split() == ["2", "2", "False"], done.stderr
    assert "this is one process" in done.stderr.splitlines()[0]


def test_threads_are_told_how_long_to_spin_before_torch_loads(tmp_path) -> None:
    """OpenMP reads it once, when torch brings it in."""
    code = f"""if True:
    import importlib.abc, os, sys

    class Watch(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name == "torch":
                print(os.environ.get("{SPIN_VARIABLE}"), flush=True)

    sys.meta_path.insert(0, Watch())
    from rl.cli import main
    main()
    """
    (tmp_path / "c.yaml").write_text("model: {path: nowhere}\ntask: letters\n")
    command = [sys.executable, "-c", code, "train", str(tmp_path / "c.yaml")]
    env = {name: value for name, value in os.environ.items() if name != SPIN_VARIABLE}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stdout.split() == [SPIN_COUNT]
