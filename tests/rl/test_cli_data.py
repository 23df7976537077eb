from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from rewards.errors import BadInput
from rl.cli_data import rewards_app, tasks_app
from rl.exits import CheckFailed

PLUGIN = """
def good(response, problem): return response.strip() == f"\\\\boxed{{{problem.answer}}}"
def open_handed(response, problem): return 1.0
def broken(response, problem): return 1 / 0
def bonus(size): return lambda response, problem: size
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(app: Any, *arguments: str, stdin: str = "") -> Result:
    result = CliRunner().invoke(app, list(arguments), input=stdin)
    if isinstance(result.exception, BadInput):
        raise result.exception
    return result


def test_tasks_list_is_readable_and_json() -> None:
    assert "countdown: Reach a target" in call(tasks_app, "list").stdout
    assert {"countdown", "arithmetic", "letters"} == {
        r["name"] for r in json.loads(call(tasks_app, "list", "--json").stdout)
    }


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


def test_rewards_list() -> None:
    assert "countdown: built in" in call(rewards_app, "list").stdout
    assert json.loads(call(rewards_app, "list", "--json").stdout)[0]["name"] == "countdown"


def score(reward: str, *rows: Any) -> list[dict[str, Any]]:
    done = call(rewards_app, "score", "--reward", reward, stdin="".join(json.dumps(row) + "\n" for row in rows))
    assert done.exit_code == 0
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_rewards_score_keeps_order_and_ids() -> None:
    rows = [{"id": [k], "response": str(k % 2), "answer": 1} for k in range(40)]
    out = score("exact_match", *rows, {"response": "1", "answer": 1, "truncated": True})
    assert [row["id"] for row in out] == [[k] for k in range(40)] + [None]
    assert [row["score"] for row in out] == [float(k % 2) for k in range(40)] + [0.0]
    assert out[-1]["status"] == "truncated"
    assert set(out[0]) == {"id", "score", "correct", "status", "parts", "detail", "seconds"}


def test_rewards_score_takes_files_factories_and_columns() -> None:
    assert score("mine.py:good", {"response": "\\boxed{4}", "answer": "4"})[0]["correct"]
    assert score('{"use": "mine:bonus", "args": {"size": 0.5}}', {"response": ""})[0]["score"] == 0.5
    assert score("countdown", {"response": "1 + 2", "numbers": [2, 1], "target": 3})[0]["correct"]


@pytest.mark.parametrize(
    ("reward", "stdin", "words"),
    [
        ("nope", "", "unknown reward"),
        ("{use: x}", "", "not JSON"),
        ("letters", '{"response": "a"}\n{"response"', "stdin, line 2: broken JSON"),
        ("letters", "\n[]", "stdin, line 2: list"),
        ("letters", '{"answer": 1}', "no text 'response'"),
    ],
)
def test_rewards_score_refuses_bad_input(reward: str, stdin: str, words: str) -> None:
    with pytest.raises(BadInput) as error:
        call(rewards_app, "score", "--reward", reward, stdin=stdin)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["countdown"], ""),
        (["letters"], ""),
        (["mine.py:good"], ""),
        (["mine.py:good", "--task", "arithmetic"], "gold is not correct"),
        (["mine.py:open_handed"], "accepts no answer"),
        (["mine.py:broken"], "no verdict"),
    ],
)
def test_rewards_check(arguments: list[str], complaint: str) -> None:
    done = call(rewards_app, "check", *arguments)
    assert isinstance(done.exception, CheckFailed) == bool(complaint)
    assert complaint in done.stdout
    assert "power tower" in done.stdout
