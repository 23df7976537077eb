"""kill -9 of the learner in every phase of a step, then --resume: as if it had not been, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl.metrics import read_metrics
from rollout.store import chain_to_json, read
from tests.rl.test_loop import figures
from tests.slow.commands import Household, assert_whole, saved_step, server_pid, survivors

LOCAL = ("sampler=transformers", "train.steps=6")
POINTS = {  # where the learner is killed -> the checkpoint that the resume goes on from
    "reward:1": 0,
    "learn:2": 0,
    "samples:3": 2,
    "metrics:4": 2,
    "save:4": 2,
    "saved:4": 4,
    "rollout:5": 4,
    "save:6": 4,
}


def test_a_run_that_is_killed_in_every_phase_is_the_run_that_never_was(house: Household) -> None:
    house.train("whole", *LOCAL).ends(0)
    run, kept = house.run("killed"), b""
    for number, (point, saved) in enumerate(POINTS.items()):
        command = house.train("killed", *LOCAL, hold=point) if number == 0 else house.resume("killed", hold=point)
        command.held(point)
        assert house.alive("rewards.worker"), point
        house.kill(command.process.pid)
        command.ends(-9)
        house.is_empty(within=3)
        assert saved_step(run) == saved, point
        assert survivors(run).startswith(kept), point
        kept = survivors(run)
    house.resume("killed").ends(0)
    assert_whole(run, 6, kept)
    whole = house.run("whole")
    assert figures(run) == figures(whole)
    assert chains(run.samples) == chains(whole.samples)
    for name in ("model.safetensors", "trainer/state.safetensors"):
        assert (run.checkpoints / "step-6" / name).read_bytes() == (whole.checkpoints / "step-6" / name).read_bytes()


def chains(path: Path) -> list[object]:
    return [(step, [chain_to_json(chain) for group in groups for chain in group.chains]) for step, groups in read(path)]


@pytest.mark.timeout(1200)  # a busy machine takes 100 s for a server
def test_a_killed_learner_takes_its_server_along_and_a_killed_server_comes_back(house: Household) -> None:
    """The learner in a push and in a rollout; then, in one run, the server in a rollout and its engine in a push."""
    run, kept = house.run("killed"), b""
    command = house.train("killed", "train.steps=6", hold="push:3")
    for point, saved in (("push:3", 2), ("rollout:5", 4)):
        command.held(point)
        assert house.alive("vllm.entrypoints")
        assert house.alive("VLLM::EngineCore")
        assert house.alive("rewards.worker")
        house.kill(command.process.pid)
        command.ends(-9)
        house.is_empty()
        assert saved_step(run) == saved
        kept = survivors(run)
        command = house.resume("killed", hold="rollout:5" if saved == 2 else "rollout:5 push:6")
    command.held("rollout:5")
    first = server_pid(run)
    house.kill(first)
    command.go("rollout:5")
    command.held("push:6")
    assert server_pid(run) != first
    (engine,) = house.alive("VLLM::EngineCore")
    house.kill(engine)
    command.go("push:6")
    text = command.ends(0)
    assert text.count("vLLM server lost") == 2
    assert_whole(run, 6, kept)
    assert max(row["mismatch_kl/fresh"] for row in read_metrics(run.metrics)) <= 1e-6  # pushed to before it was asked
