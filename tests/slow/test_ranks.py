"""Whole runs of several ranks on gloo: how long they wait, how they end, whatever ends first."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from rl.metrics import read_metrics
from tests.rl.ranks import ROOT, finish, said, started

pytestmark = pytest.mark.slow
RUN = (
    f"model.path={ROOT}/configs/models/bytes-tiny", "sampler=transformers", "rollout.problems=4",
    "rollout.group_size=4", "rewards.workers=1", "eval.every=0", "train.checkpoint_every=1",
)  # fmt: skip


def training(*overrides: str) -> list[str]:
    return ["train", str(ROOT / "configs/quickstart.yaml"), *RUN, *overrides]


def until_sampling(home: Path, processes: list) -> None:
    deadline = time.monotonic() + 120
    while "sampling" not in said(home, 0):
        assert all(process.poll() is None for process in processes), [said(home, r) for r in range(len(processes))]
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_three_ranks_wait_for_a_slow_sampler_far_beyond_a_collectives_time_out(tmp_path: Path, sharding: str) -> None:
    run = training("train.steps=2", f"train.sharding={sharding}", "run.name=r")
    with started(run, 3, tmp_path, TROUBLE="slow 12") as ranks:  # a collective would give up after 5
        codes, texts = finish(ranks, tmp_path, 300)
    assert codes == [0, 0, 0], texts
    assert [row["step"] for row in read_metrics(tmp_path / "runs/r/metrics.jsonl")] == [1, 2]
    summary = json.loads((tmp_path / "runs/r/summary.json").read_text())
    assert (summary["world_size"], summary["sharding"]) == (3, sharding)
    assert [text for text in texts[1:] if "Traceback" in text] == []


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_others(tmp_path: Path, victim: int) -> None:
    with started(training("train.steps=2"), 3, tmp_path, TROUBLE="slow 4") as ranks:
        until_sampling(tmp_path, ranks)
        before = {child for process in ranks for child in psutil.Process(process.pid).children(recursive=True)}
        os.kill(ranks[victim].pid, signal.SIGKILL)
        codes, texts = finish(ranks, tmp_path, 20)
    codes.pop(victim)
    assert codes == [3, 3], texts
    words = "rank 0 of the learner is gone" if victim == 0 else "lost another"
    assert words in texts[1 - victim], texts
    assert not [child for child in before if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_a_fault_of_one_rank_ends_all(tmp_path: Path) -> None:
    with started(training("train.steps=2"), 2, tmp_path, TROUBLE="fault") as ranks:
        codes, texts = finish(ranks, tmp_path)
    assert codes == [3, 3], texts
    assert "out of memory" in texts[1]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_ranks_saves_and_ends_them_with_its_code(tmp_path: Path, signum: signal.Signals) -> None:
    run = training("train.steps=5", "run.name=r", "train.sharding=fsdp2")
    with started(run, 2, tmp_path, TROUBLE="slow 3") as ranks:
        until_sampling(tmp_path, ranks)
        for process in ranks:
            process.send_signal(signum)
        codes, texts = finish(ranks, tmp_path)
    assert codes == [128 + signum] * 2, texts
    assert (tmp_path / "runs/r/checkpoints/step-0").is_dir(), texts


def test_two_ranks_resume_what_one_layout_saved_in_the_other(tmp_path: Path) -> None:
    for arguments in (training("train.steps=2", "run.name=r", "train.sharding=fsdp2"),
                      ["train", "--resume", "runs/r", "train.steps=4", "train.sharding=none"]):  # fmt: skip
        with started(arguments, 2, tmp_path) as ranks:
            codes, texts = finish(ranks, tmp_path)
        assert codes == [0, 0], texts
    rows = read_metrics(tmp_path / "runs/r/metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert max(row["mismatch_kl/fresh"] for row in rows) < 1e-6


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"LOCAL_WORLD_SIZE": "1"}, "1 of 2 ranks run on this machine"),
        ({"ACCELERATE_USE_FSDP": "true"}, "train.sharding=fsdp2"),
        ({}, "learning_rat"),
    ],
)
def test_bad_input_is_said_once(tmp_path: Path, env: dict[str, str], words: str) -> None:
    with started(training("train.learning_rat=1"), 2, tmp_path, **env) as ranks:
        codes, texts = finish(ranks, tmp_path)
    assert codes == [2, 2]
    assert words in texts[0]
    assert (len(texts[0].splitlines()), texts[1]) == (1, "")
