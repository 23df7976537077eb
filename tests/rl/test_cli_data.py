from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from rewards.errors import BadInput
from rl.cli import tasks_app
from rl.exits import CheckFailed

BYTES = str(Path(__file__).parents[2] / "configs/models/bytes-tiny")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(app: Any, *arguments: str, stdin: str = "") -> Result:
    result = CliRunner().invoke(app, list(arguments), input=stdin)
    if isinstance(result.exception, BadInput):
        raise result.exception
    return result


def test_tasks_list_is_readable_and_json() -> None:
    assert "countdown: Reach a target" in call(tasks_app, "list").stdout
    listed = json.loads(call(tasks_app, "list", "--json").stdout)
    assert {"countdown", "arithmetic", "letters"} <= {row["name"] for row in listed}


def test_tasks_sample_draws_what_a_run_draws() -> None:
    from rewards.tasks import load_task

    listed = json.loads(
        call(tasks_app, "sample", "countdown", "-n", "3", "--split", "val", "--seed", "4", "--json").stdout
    )
    task = load_task("countdown", seed=4)
    assert [row["prompt"] for row in listed] == [task.problem(i, "val").prompt for i in range(3)]
    assert "difficulty" in call(tasks_app, "sample", "letters").stdout


def test_tasks_sample_of_a_short_file_stops_at_its_end(here: Path) -> None:
    (here / "f.jsonl").write_text('{"prompt": [{"role": "user", "content": "hi"}], "answer": 1, "split": "test"}\n')
    assert call(tasks_app, "sample", "f.jsonl", "--split", "test").stdout.count("prompt:") == 1
    with pytest.raises(BadInput, match="no val rows"):
        call(tasks_app, "sample", "f.jsonl", "--split", "val")


def test_tasks_check_passes_and_fails(here: Path) -> None:
    done = call(tasks_app, "check", "countdown", "-n", "5")
    assert (done.exit_code, done.exception) == (0, None)
    assert "5 of 5 gold answers are correct (100.0%)" in done.stdout
    rows = [
        {"prompt": "1+1?", "answer": "2", "split": "train"},
        {"id": "odd", "prompt": "x", "answer": "y", "gold": "z", "split": "val"},
        {"prompt": "x", "answer": "y", "split": "train"},
    ]
    (here / "f.jsonl").write_text("\n".join(map(json.dumps, rows)))
    failed = call(tasks_app, "check", "f.jsonl")
    assert isinstance(failed.exception, CheckFailed)
    assert "odd: gold 'z' is wrong: answered 'z'" in failed.stdout
    assert "1 of 2 gold answers" in failed.stdout
    assert "1 rows dropped" in failed.stdout


def test_tasks_check_counts_what_a_gold_chain_takes(here: Path) -> None:
    row = {"prompt": "1+1?", "answer": "2", "split": "train", "gold": "<think>\none and one\n</think>\n\\boxed{2}"}
    (here / "f.jsonl").write_text(json.dumps(row))
    assert "f.jsonl: gold chains of 6 words on average" in call(tasks_app, "check", "f.jsonl").stdout
    found = json.loads(call(tasks_app, "check", "f.jsonl", "--json", "--tokenizer", BYTES).stdout)
    assert found["chain_tokens_mean"] == 25  # bytes, and one token for each tag
    assert (found["checked"], found["correct"], found["wrong"]) == (1, 1, [])
    assert found["seconds_mean"] > 0
    (here / "f.jsonl").write_text(json.dumps(row | {"gold": "3", "id": "odd"}))
    failed = call(tasks_app, "check", "f.jsonl", "--json")
    assert isinstance(failed.exception, CheckFailed)
    assert json.loads(failed.stdout)["wrong"] == [{"id": "odd", "status": "wrong", "detail": "answered '3'"}]
    assert json.loads(call(tasks_app, "check", "letters", "--json").stdout)["chain_tokens_mean"] is None
