"""Signals: saved, resumable, nothing left, whenever they come; 128 + signal is the exit code."""

from __future__ import annotations

import json
import signal

import pytest

from rollout.store import read
from tests.rl.test_loop import figures
from tests.slow.commands import Household, assert_whole, saved_step, survivors

LOCAL = ("sampler=transformers", "train.steps=4", "train.checkpoint_every=100")
EVALUATED = ("eval.every=100", "eval.problems=8")


def test_stops_at_safe_points_and_a_second_signal_in_a_save_spoils_nothing(house: Household) -> None:
    house.train("whole", *LOCAL).ends(0)
    run = house.run("run")
    command = house.train("run", *LOCAL, *EVALUATED, hold="learn:2 save:2")
    command.held("learn:2")
    command.signal(signal.SIGINT)
    command.until(lambda: "ponder: stopping" in command.text)  # said at once, while the learner is busy
    command.go("learn:2")
    command.held("save:2")
    command.signal(signal.SIGINT)
    command.ends(130)
    house.is_empty(within=3)
    assert saved_step(run) == 0
    assert (run.checkpoints / ".step-2.draft").is_dir()  # given up on

    command = house.resume("run", hold="rollout:3")
    command.held("rollout:3")
    command.signal(signal.SIGTERM)
    command.go("rollout:3")
    command.ends(143, "SIGTERM after step 2", str(run.path))
    house.is_empty(within=3)
    kept = survivors(run)
    assert saved_step(run) == 2

    command = house.resume("run", hold="final:0")
    command.held("final:0")
    command.signal(signal.SIGINT)
    command.go("final:0")
    command.ends(130, "SIGINT after step 4")
    measured = {"base.json", "step-0.json", "step-4.json"}
    assert {path.name for path in run.eval.glob("*.json")} == measured

    house.resume("run").ends(0)
    assert_whole(run, 4, kept)
    assert figures(run) == figures(house.run("whole"))
    assert {path.name for path in run.eval.glob("*.json")} == measured | {"final.json", "changes.json"}
    assert run.summary.exists()


EVAL = (
    "eval",
    "configs/models/bytes-tiny",
    "--task",
    "letters",
    "--problems",
    "2",
    "--max-tokens",
    "8",
    "--answer",
    "2",
)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_run_whose_server_is_starting(house: Household, number: signal.Signals, code: int) -> None:
    command = house.train("run")
    command.until(lambda: house.alive("vllm.entrypoints"))
    house.look()
    command.signal(number)
    command.ends(code, within=30)
    house.is_empty()
    assert not house.run("run").metrics.exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_evaluation_whose_server_is_starting(house: Household, number: signal.Signals, code: int) -> None:
    command = house.start(*EVAL)
    command.until(lambda: house.alive("vllm.entrypoints"))
    house.look()
    command.signal(number)
    command.ends(code, number.name, "after 0 of 2 questions", within=30)
    house.is_empty()


def test_an_evaluation_in_the_midst_keeps_what_is_done_and_goes_on(house: Household) -> None:
    out = house.home / "e.json"
    samples = house.home / "e.samples.jsonl.zst"
    longer = ("--problems", "400", "--k", "2", "--max-tokens", "200", "--no-think", "--out", str(out))
    command = house.start(*EVAL[:4], *longer)
    command.until(lambda: samples.exists() and len(list(read(samples))) > 1)
    house.look()
    command.signal(signal.SIGTERM)
    command.ends(143, "kept in", "--resume goes on", within=30)
    house.is_empty()
    assert not out.exists()
    done = [group.problem.id for _, groups in read(samples) for group in groups]
    assert 0 < len(done) < 400
    house.start(*EVAL[:4], *longer, "--resume").ends(0)
    again = [group.problem.id for _, groups in read(samples) for group in groups]
    assert again[: len(done)] == done
    assert len(set(again)) == len(again) == 400
    (cell,) = json.loads(out.read_text())["cells"]
    assert (cell["n_problems"], cell["n_samples"]) == (400, 800)
    house.is_empty()
