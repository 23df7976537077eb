"""A resumed run is the run that was never stopped: for every preset, and at every boundary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rewards.errors import BadInput
from rl.config import override_config
from rl.presets import ROWS
from rl.rundir import RunDir
from tests.rl.test_loop import figures, make_config, optimizer, run_once, weights

REFERENCE = {"kl_weight": 0.05, "reference_reset": 2}


def run_twice(tmp_path: Path, stop: int, **extra: Any) -> tuple[RunDir, RunDir]:
    """The same run in one go, and stopped after some steps."""
    whole, parts = (make_config(tmp_path, name, **extra) for name in ("whole", "parts"))
    run_once(override_config(parts, [f"train.steps={stop}"]))
    return run_once(whole), run_once(parts, resume=True)


def assert_same(whole: RunDir, parts: RunDir, last: int) -> None:
    assert figures(whole) == figures(parts)
    assert weights(whole, last) == weights(parts, last)
    assert optimizer(whole, last) == optimizer(parts, last)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_every_preset(tmp_path: Path, name: str) -> None:
    assert_same(*run_twice(tmp_path, 2, algorithm=name, train={"steps": 3}), last=3)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 3])
def test_with_a_reference_that_is_reset(tmp_path: Path, stop: int) -> None:
    whole, parts = run_twice(tmp_path, stop, objective=REFERENCE)
    assert_same(whole, parts, last=4)
    kls = [row["kl/ref"] for row in figures(whole)]
    assert kls[0] == kls[2] == 0.0  # steps 1 and 3 begin where the reference is
    assert kls[1] > 0
    assert kls[3] > 0


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Six rows, so that a step of four ends in the middle of a pass, and the third step at the end of one."""
    file = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"say {i}", "answer": str(i), "split": "train"} for i in range(6)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_at_the_first_step_in_a_pass_and_at_its_end(tmp_path: Path, rows: Path, stop: int) -> None:
    task = {"task": str(rows), "reward": "letters"}
    assert_same(*run_twice(tmp_path, stop, **task), last=4)


def test_a_changed_row_anywhere_in_a_file_is_named(tmp_path: Path, rows: Path) -> None:
    config = make_config(tmp_path, "changed", task=str(rows), reward="letters", train={"steps": 1})
    run_once(config)
    rows.write_text(rows.read_text().replace('"answer": "5"', '"answer": "7"'))
    with pytest.raises(BadInput, match=r"rows\.jsonl gives other problems"):
        run_once(override_config(config, ["train.steps=2"]), resume=True)
