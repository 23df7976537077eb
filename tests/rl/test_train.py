"""What a launcher may ask of `python -m rl.train`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rewards.errors import BadInput
from rl.train import check_world
from rollout.server.argv import SPIN_COUNT, SPIN_VARIABLE


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
