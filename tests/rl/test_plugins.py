"""A plugin in a training run: it works; where it fails a little that is said by name, where it fails a lot it stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rewards.errors import BadInput, Fault
from rl.checkpoint import latest_checkpoint
from rl.config import override_config
from rl.metrics import read_metrics
from rl.rundir import RunDir
from tests.rl.test_loop import make_config, run_once

PLUGIN = """
import hashlib, os, signal, time

def _share(problem):
    return hashlib.sha256(problem.key.encode()).digest()[0] % 100

def fail(how, percent):
    def reward(response, problem):
        if _share(problem) < percent:
            if how == "raise":
                raise KeyError("gone")
            if how == "sleep":
                time.sleep(1e6)
            if how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            return float("nan")
        return response[:1].islower()
    reward.scores_truncated = True
    return reward
"""
STATUS = {"raise": "error", "nan": "error", "sleep": "rejected", "die": "rejected"}


def spec(here: Path, how: str, percent: int) -> dict[str, Any]:
    (here / "faulty.py").write_text(PLUGIN)
    return {"use": f"{here}/faulty.py:fail", "args": {"how": how, "percent": percent}}


def unlucky(seed: int, percent: int, problems: int) -> int:
    """How many of a step's problems the plugin fails on."""
    from hashlib import sha256

    from rewards.tasks import load_task

    task = load_task("letters", seed)
    keys = [task.problem(k, "train").key for k in range(problems)]
    return sum(sha256(key.encode()).digest()[0] % 100 < percent for key in keys)


@pytest.mark.parametrize("how", STATUS)
def test_a_plugin_that_fails_on_few_items_is_named_with_counts_while_the_run_goes_on(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = next(seed for seed in range(100) if unlucky(seed, 3, 40) == 2)  # with two chains each: 5 %, not more
    reward = spec(tmp_path, how, 3)
    config = make_config(
        tmp_path, how, seed=seed, reward=reward, train={"steps": 1, "minibatches": 1},
        rollout={"problems": 40, "group_size": 2, "max_tokens": 2}, rewards={"workers": 2, "time_limit": 0.3},
    )  # fmt: skip
    (row,) = read_metrics(run_once(config).metrics)
    assert row[f"samples/{STATUS[how]}"] == 4
    assert row[f"rewards/{STATUS[how]}/{json.dumps(reward)}"] == 4
    said = capsys.readouterr().err
    assert f'faulty.py:fail", "args": {{"how": "{how}", "percent": 3}}}} failed on 4 of 80 chains' in said
    assert f"(4 {STATUS[how]})" in said


@pytest.mark.parametrize("how", STATUS)
def test_a_plugin_that_fails_on_many_items_stops_the_run_by_name_and_saves(how: str, tmp_path: Path) -> None:
    assert 1 <= unlucky(0, 20, 8) <= 7
    config = make_config(
        tmp_path, how, reward=spec(tmp_path, how, 20), train={"steps": 2},
        rollout={"problems": 8, "group_size": 2, "max_tokens": 2}, rewards={"workers": 2, "time_limit": 0.3},
    )  # fmt: skip
    with pytest.raises(
        Fault, match=rf"faulty.py:fail.* failed on \d+ of 16 chains \(\d+ {STATUS[how]}\).*more than 5%"
    ):
        run_once(config)
    assert latest_checkpoint(RunDir(config.run_dir).checkpoints, print) is not None


def test_the_plugin_of_the_docs_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = (Path(__file__).parents[2] / "docs/rewards.md").read_text()
    (tmp_path / "my_rewards.py").write_text(docs.split("```python\n")[1].split("```")[0])
    rows = [{"prompt": f"{k}?", "answer": f"{k}"} for k in range(40)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    run = run_once(make_config(tmp_path, "docs", task="mine.jsonl", reward="my_rewards.py:reward", train={"steps": 2}))
    assert [row["samples/error"] for row in read_metrics(run.metrics)] == [0, 0]


ROWS = [{"id": f"r{k}", "prompt": f"{k}?", "answer": f"{k}", "split": "train"} for k in range(40)]
FALSE = {"id": "false-row", "prompt": "x", "answer": "1", "gold": "2", "split": "train"}


def test_a_false_row_stops_the_run_before_anything_is_made_or_is_left_out_by_choice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, [*ROWS, FALSE])))
    config = make_config(tmp_path, "gold", task=str(path), train={"steps": 2})
    with pytest.raises(BadInput, match=r"1 of 41 gold answers are not correct.*false-row: gold '2' is wrong"):
        run_once(config)
    assert not config.run_dir.exists()
    run = run_once(override_config(config, ["rewards.skip_bad_gold=true"]))
    assert [row["rewards/skipped_rows"] for row in read_metrics(run.metrics)] == [1, 1]
    assert "1 rows are skipped" in capsys.readouterr().out
    run_once(override_config(config, ["rewards.skip_bad_gold=true", "train.steps=3"]), resume=True)
    assert len(read_metrics(run.metrics)) == 3


def test_gold_answers_that_a_plugin_does_not_like_are_only_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "never.py").write_text("def reward(response, problem): return 0.0\n")
    run_once(make_config(tmp_path, "never", reward=f"{tmp_path}/never.py:reward", train={"steps": 1}))
    assert "16 problems scored, 0 are correct" in capsys.readouterr().out


def test_an_audit_is_counted_step_by_step_and_summed_up(tmp_path: Path) -> None:
    """Random bytes are never right, so there is nothing to disagree about, and a resumed run counts the same."""
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    config = make_config(tmp_path, "audit", task=str(path), train={"steps": 2}, rewards={"audit_share": 1.0},
                         rollout={"max_tokens": 64})  # fmt: skip
    run = run_once(config)
    rows = read_metrics(run.metrics)
    heard = [row["rewards/audit_checked"] for row in rows]
    judged_wrong = [row["samples/wrong"] + row["samples/unparsed"] for row in rows]
    assert sum(heard) > 0
    assert heard == judged_wrong == [row["rewards/audit_wrong"] for row in rows]
    assert json.loads(run.summary.read_text())["audit"]["checked"] == sum(heard)
