"""Ways to start, and what is refused in one line with exit 2 and nothing lost."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest

from tests.slow.commands import SMALL, Household, assert_whole, fill, saved_step, survivors

LOCAL = ("sampler=transformers", "train.steps=2")
PYTHON = Path(sys.executable)


@pytest.mark.parametrize(
    "launcher",
    [
        ["-m", "rl.train"],
        ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "rl.train"],
        ["-m", "torch.distributed.run", "--nproc_per_node", "1", "-m", "rl.train"],
    ],
    ids=["python", "accelerate", "torchrun"],
)
def test_launchers_of_one_process(house: Household, launcher: list[str]) -> None:
    house.start(str(PYTHON), *launcher, *SMALL, *house.places("run"), *LOCAL).ends(0)
    assert_whole(house.run("run"), 2)


def test_a_world_of_several_machines_is_refused(house: Household) -> None:
    env = {"WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    env["LOCAL_WORLD_SIZE"] = "2"
    command = house.start(str(PYTHON), "-m", "rl.train", *SMALL, *house.places("run"), env=env)
    assert len(command.ends(2, "2 of 4 ranks").splitlines()) == 1


def test_a_server_that_cannot_start_is_refused_before_anything_changes(house: Household) -> None:
    old = house.run("busy").metrics
    old.parent.mkdir(parents=True)
    old.write_text('{"step": 1}\n')
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        busy = house.train("busy", f"server.port={port}", "--overwrite")
        missing = house.train("missing", env={"HIDE": "vllm"})
        refusals = busy.ends(2, str(port), "server.port"), missing.ends(2, "vLLM is not installed", "make setup")
    for text in refusals:  # what the gold answers came to, and the refusal
        assert [line.startswith("ponder: ") for line in text.splitlines()] == [False, True]
    assert old.read_text() == '{"step": 1}\n'
    assert not house.run("missing").config.exists()


def test_a_full_disk_loses_nothing_and_a_second_run_is_kept_out(house: Household) -> None:
    if not house.small_disk(house.runs, 40):
        pytest.skip("mounting a small disk takes root")
    run = house.run("run")
    steps = ("train.steps=4", "train.checkpoint_every=1")
    command = house.train("run", "sampler=transformers", *steps, hold="learn:2")
    command.held("learn:2")
    house.resume("run").ends(2, "in use by another run")
    filler, kept = fill(house.runs / "filler"), survivors(run)
    command.go("learn:2")
    assert "no space left" in command.ends(2, "free some").splitlines()[-1]  # in the samples or the metrics
    assert saved_step(run) == 1

    filler.unlink()
    command = house.resume("run", hold="save:3")
    command.held("save:3")  # model and optimizer are written, the manifest is not
    fill(filler)
    command.go("save:3")
    command.ends(2, "no space left for checkpoint", "step-3")
    assert saved_step(run) == 2

    filler.unlink()
    command = house.resume("run", hold="metrics:3")
    command.held("metrics:3")
    room = (run.checkpoints / "step-2" / "model.safetensors").stat().st_size * 3 // 2
    fill(filler, leave=room)  # for the model, not for the optimizer's tensors
    command.go("metrics:3")
    command.ends(2, "no space left for checkpoint", "step-3")
    assert saved_step(run) == 2

    filler.unlink()
    house.resume("run").ends(0)
    assert_whole(run, 4, kept)


def test_vllm_serves_what_was_saved(house: Household) -> None:
    house.train("run", *LOCAL).ends(0)
    out = house.home / "cells.json"
    house.start(
        "eval", str(house.runs / "run"), "--task", "letters", "--problems", "8", "--no-think", "--max-tokens", "4",
        "--answer", "2", "--out", str(out),
    ).ends(0)  # fmt: skip
    (cell,) = json.loads(out.read_text())["cells"]
    assert (cell["n_problems"], cell["model"]) == (8, f"{house.runs / 'run'}@2")
