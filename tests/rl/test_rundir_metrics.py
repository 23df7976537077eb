"""Run directory and metrics.jsonl."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from rewards.errors import BadInput
from rewards.types import Problem, Score
from rl.config import parse_config
from rl.metrics import MetricsLog, memory_metrics, read_metrics, rollout_metrics, truncate_metrics
from rl.rundir import RunDir, open_run, write_json
from rollout.types import Chain, Group

CONFIG = parse_config({"model": {"path": "m"}, "task": "letters"})


def test_two_runs_in_one_directory_are_refused(tmp_path) -> None:
    run = RunDir(tmp_path / "r")
    code = (
        "import sys,time; from rl.rundir import RunDir; from pathlib import Path;"
        "lock=RunDir(Path(sys.argv[1])).lock(); lock.__enter__(); print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(BadInput, match="in use by another run"), run.lock():
            pass
    finally:
        other.kill()
        other.wait()
        assert other.stdout is not None
        other.stdout.close()
    with run.lock():  # the kernel let go of it with the killed process
        pass
    assert not run.path.exists()  # nothing was made in it


def test_a_directory_with_metrics_is_refused_unless_overwritten(tmp_path) -> None:
    run = RunDir(tmp_path / "r")
    with run.lock():
        run.check_free()
        run.create(CONFIG)
        run.metrics.write_text('{"step": 1}\n')
        with pytest.raises(BadInput, match="--resume"):
            run.check_free()
        run.create(CONFIG)
        assert not run.metrics.exists()
    assert open_run(run.path)[1] == CONFIG


def test_open_run_names_what_is_no_run(tmp_path) -> None:
    with pytest.raises(BadInput, match="not a run directory"):
        open_run(tmp_path)


def test_json_refuses_nan(tmp_path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": math.nan})


def test_rows_carry_totals_and_survive_a_cut_line(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in (1, 2, 3):
        log.append({"step": step, "tokens/generated": 10, "entropy": math.nan})
    first_two = b"".join(path.read_bytes().splitlines(keepends=True)[:2])
    with path.open("a") as file:
        file.write('{"step": 4, "tok')
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]
    truncate_metrics(path, 2)
    assert path.read_bytes() == first_two
    row = MetricsLog(path).append({"step": 3, "tokens/generated": 5})
    assert row["total/tokens/generated"] == 25
    assert json.loads(path.read_text().splitlines()[0])["entropy"] is None


def chain(status: str, value: float | None, correct: bool, n: int) -> Chain:
    score = Score(value, correct, status, {"format": float(n)})  # type: ignore[arg-type]
    return Chain("c", "p", [0] + [1] * n, 1, [False] + [True] * n, [0.0] * (n + 1), [(1, 0)], "stop", score)


def test_rollout_metrics_leave_errors_out_of_the_means() -> None:
    problem = Problem("p", "t", "x", None, "k")
    chains = [
        chain("ok", 1.0, True, 3),
        chain("wrong", 0.0, False, 5),
        chain("error", None, False, 2),
        chain("ok", 1.0, True, 2),
    ]
    row = rollout_metrics([Group(problem, chains)])
    assert row["reward/mean"] == pytest.approx(2 / 3)
    assert row["accuracy/pass@1"] == pytest.approx(2 / 3)
    assert (row["samples/ok"], row["samples/error"], row["samples/skipped"]) == (2, 1, 0)
    assert (row["tokens/generated"], row["tokens/max"]) == (12, 5)
    assert row["reward/format"] == pytest.approx(3.0)


def test_memory_counts_what_was_started() -> None:
    code = "b = bytearray(200 << 20); b[::4096] = b'x' * len(b[::4096]); print(flush=True); input()"
    before = memory_metrics()
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        after = memory_metrics()
    finally:
        child.communicate(b"\n")
    assert after["memory/server"] - before["memory/server"] > 0.19
    assert 0 < after["memory/learner"] <= after["memory/peak"] < 64
