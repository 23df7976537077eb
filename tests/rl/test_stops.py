"""What a stop leaves behind: the checkpoint, the recorded steps and the evaluations always belong together."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import typer

from rewards.errors import BadInput, Fault
from rl import checkpoint
from rl.backend import LocalBackend
from rl.checkpoint import latest_checkpoint
from rl.config import override_config
from rl.exits import run_command
from rl.learner import Learner
from rl.metrics import MetricsLog, read_metrics
from rl.rundir import RunDir, open_run
from rollout.store import read
from tests.rl.test_loop import figures, make_config, run_once, whole

__all__ = ["whole"]  # a fixture


def recorded(run: RunDir) -> tuple[list[int], list[int], int | None]:
    """Steps in the metrics, steps in the samples, step of the newest checkpoint."""
    found = latest_checkpoint(run.checkpoints, print)
    samples = [step for step, _ in read(run.samples)] if run.samples.exists() else []
    return [row["step"] for row in read_metrics(run.metrics)], samples, found.step if found else None


def fail_push(monkeypatch, version: int, error: Exception) -> None:
    original = LocalBackend.push

    async def push(self: LocalBackend, source: Any, label: int) -> Any:
        if label == version:
            raise error
        return await original(self, source, label)

    monkeypatch.setattr(LocalBackend, "push", push)


@pytest.mark.parametrize("error", [Fault("the server died 4 times"), BadInput("sync.dir=x has 3 bytes free")])
def test_a_push_that_fails_after_the_update_loses_no_step(tmp_path, monkeypatch, whole: RunDir, error: Exception):
    config = make_config(tmp_path, "push", train={"checkpoint_every": 100})
    run = RunDir(config.run_dir)
    with monkeypatch.context() as patch:
        fail_push(patch, 2, error)
        with pytest.raises(type(error)):
            run_once(config)
    assert recorded(run) == ([1, 2], [1, 2], 2)
    run_once(open_run(run.path)[1], resume=True)
    assert recorded(run) == ([1, 2, 3, 4], [1, 2, 3, 4], 4)
    assert figures(run) == figures(whole)


def test_weights_that_a_fault_left_half_way_through_a_step_are_not_saved(tmp_path, monkeypatch) -> None:
    original = Learner._update

    def update(self: Learner, state: Any, part: Any, check: Any) -> None:
        if self.updates_due == 3:  # the second minibatch of step 2
            raise Fault("loss nan and gradient norm nan")
        original(self, state, part, check)

    monkeypatch.setattr(Learner, "_update", update)
    config = make_config(tmp_path, "half", train={"checkpoint_every": 100})
    with pytest.raises(Fault, match="nan"):
        run_once(config)
    assert recorded(RunDir(config.run_dir)) == ([1], [1], None)


@pytest.mark.parametrize("when", ["metrics", "state"])
def test_a_full_disk_is_one_line_and_the_run_goes_on_after_it(tmp_path, monkeypatch, whole: RunDir, when: str) -> None:
    config = make_config(tmp_path, "full", train={"checkpoint_every": 1})
    run = RunDir(config.run_dir)
    with monkeypatch.context() as patch:
        fill_disk(patch, when)
        with pytest.raises((BadInput, OSError), match=r"(?i)no space left"):
            run_once(config)
    assert recorded(run)[2] == 1
    run_once(open_run(run.path)[1], resume=True)
    assert figures(run) == figures(whole)


def fill_disk(monkeypatch, when: str) -> None:
    """From step 2 on: in the line of the metrics, or in the state's tensors (whose writer's error is no OSError)."""
    append, write_state = MetricsLog.append, checkpoint._write_state
    saves = iter(range(1, 100))

    def torn(self: MetricsLog, row: dict[str, Any]) -> Any:
        if row["step"] < 2:
            return append(self, row)
        with self.path.open("a") as file:
            file.write('{"step": 2, "vers')
        raise OSError(errno.ENOSPC, "No space left on device")

    def full(directory: Path, *state: Any) -> None:
        if next(saves) < 2:
            return write_state(directory, *state)
        from safetensors import SafetensorError

        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    if when == "metrics":
        monkeypatch.setattr(MetricsLog, "append", torn)
    else:
        monkeypatch.setattr(checkpoint, "_write_state", full)


def test_going_back_takes_later_evaluations_along_and_going_on_makes_a_new_final(tmp_path) -> None:
    config = make_config(tmp_path, "evals", eval={"every": 1, "problems": 4}, train={"steps": 3, "checkpoint_every": 2})
    run = run_once(config)
    first = {path.name: path.read_bytes() for path in run.eval.iterdir()}
    damage = run.checkpoints / "step-3" / "model.safetensors"
    damage.write_bytes(damage.read_bytes()[:-1])
    run.eval.joinpath("step-3.json").write_text("of a longer life")
    run_once(override_config(config, ["train.steps=4"]), resume=True)
    again = {path.name: path.read_bytes() for path in run.eval.iterdir()}
    assert {name for name in again if name.endswith(".json")} == {f"{n}.json" for n in LABELS}
    assert again["base.json"] == first["base.json"]  # of weights that are still the base
    assert again["step-1.json"] == first["step-1.json"]
    assert again["final.samples.jsonl.zst"] != first["final.samples.jsonl.zst"]
    assert json.loads(run.summary.read_text())["steps"] == 4


LABELS = ("base", "step-0", "step-1", "step-2", "step-3", "step-4", "final", "changes")


def test_a_command_that_is_interrupted_ends_with_130(capsys) -> None:
    app = typer.Typer()

    @app.command()
    def wait() -> None:
        raise KeyboardInterrupt

    assert run_command(lambda: app([], standalone_mode=False)) == 130
    assert capsys.readouterr().err.strip() == "ponder: interrupted"


def test_what_a_resume_overrides_is_the_runs_configuration_from_then_on(tmp_path) -> None:
    config = make_config(tmp_path, "longer", train={"steps": 1})
    run = run_once(config)
    run_once(override_config(config, ["train.steps=2"]), resume=True)
    assert open_run(run.path)[1].train.steps == 2
