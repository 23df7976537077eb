from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rewards.errors import BadInput
from rewards.types import Problem, Score
from rl.cli import rewards_app
from rl.config import parse_config
from rl.exits import CheckFailed
from rl.rundir import RunDir
from rollout.prompt import Template
from rollout.store import SampleStore
from rollout.types import Chain, FinishReason, Group
from tests.rl.test_cli_data import BYTES, call

PLUGIN = """
def good(response, problem): return response.strip() == f"\\\\boxed{{{problem.answer}}}"
def open_handed(response, problem): return 1.0
def broken(response, problem): return 1 / 0
def anywhere(response, problem): return problem.answer in response
def bonus(size): return lambda response, problem: size
def silent(response, problem): return None
silent.scores_truncated = True
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_rewards_list() -> None:
    assert "countdown: built in" in call(rewards_app, "list").stdout
    assert "countdown" in {row["name"] for row in json.loads(call(rewards_app, "list", "--json").stdout)}


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
        (["mine.py:anywhere"], "accepts a near miss"),
        (["mine.py:anywhere", "--task", "arithmetic", "-n", "3"], "gold in prose"),
        (["mine.py:broken"], "no verdict"),
    ],
)
def test_rewards_check(arguments: list[str], complaint: str) -> None:
    done = call(rewards_app, "check", *arguments)
    assert isinstance(done.exception, CheckFailed) == bool(complaint)
    assert complaint in done.stdout
    assert "power tower" in done.stdout


def stored_run(here: Path) -> RunDir:
    """Two steps of one problem, three chains each, judged by a reward that wanted a box."""
    config = parse_config({"model": {"path": BYTES, "think": False}, "task": "letters"})
    run = RunDir(here / "runs/first")
    run.path.mkdir(parents=True)
    run.write_config(config)
    template = Template.load(BYTES, think=False)
    problem = Problem("p", "t", "1+1?", "2", "1+1?", meta={"solution": "two"})
    prompt = template.encode(problem.prompt)

    def chain(step: int, k: int, text: str, score: Score, reason: FinishReason = "stop") -> Chain:
        ids = prompt + template.tokenizer.encode(text, add_special_tokens=False)
        fresh = len(ids) - len(prompt)
        return Chain(
            f"{step}/p/{k}", "p", ids, len(prompt), [False] * len(prompt) + [True] * fresh,
            [0.0] * len(ids), [(len(prompt), 0)], reason, replace(score, id=f"{step}/p/{k}"),
        )  # fmt: skip

    right, wrong, cut = Score(1.0, True, "ok"), Score(0.0, False, "wrong"), Score(0.0, False, "truncated")
    for step in (1, 2):
        chains = [
            chain(step, 0, "\\boxed{2}", right),
            chain(step, 1, "It is 2", wrong),
            chain(step, 2, "2", cut, "length"),
        ]
        SampleStore(run.samples).append(step, [Group(problem, chains, step)])
    return run


def test_rescore_shows_old_and_new_side_by_side_and_leaves_the_run_alone(here: Path) -> None:
    run = stored_run(here)
    before = {p.name: p.read_bytes() for p in run.path.iterdir()}
    found = json.loads(call(rewards_app, "rescore", "runs/first", "--reward", "mine.py:anywhere", "--json").stdout)
    assert found["moves"] == {"ok -> ok": 2, "wrong -> ok": 2, "truncated -> truncated": 2}
    assert (found["old"]["mean"], found["new"]["mean"]) == pytest.approx((1 / 3, 2 / 3))
    assert (found["old"]["pass@1"], found["new"]["pass@1"]) == pytest.approx((1 / 3, 2 / 3))
    assert found["agreement"]["share"] == pytest.approx(4 / 6)
    low, high = found["agreement"]["ci95"]
    assert 0.2 < low < 4 / 6 < high < 1
    assert [(row["id"], row["reference"]) for row in found["changed"]] == [("1/p/1", "2"), ("2/p/1", "2")]
    assert (found["changed"][0]["old"]["status"], found["changed"][0]["new"]["status"]) == ("wrong", "ok")
    assert {p.name: p.read_bytes() for p in run.path.iterdir()} == before


def test_rescore_takes_some_steps_and_some_chains(here: Path) -> None:
    stored_run(here)
    shown = call(rewards_app, "rescore", "runs/first", "--reward", "mine.py:anywhere", "--steps", "2", "-n", "5").stdout
    assert "3 chains under mine.py:anywhere" in shown
    assert "as correct as before: 0.6667" in shown
    assert "2/p/1: wrong 0.0 -> ok 1.0  answer 'It is 2', reference '2'" in shown
    silent = call(rewards_app, "rescore", "runs/first", "--reward", "mine.py:silent").stdout
    assert "new: mean none, pass@1 0.0000" in silent
    few = ["rescore", "runs/first", "--reward", "mine.py:anywhere", "--steps", "1-2", "--limit", "4", "--json"]
    assert json.loads(call(rewards_app, *few).stdout)["chains"] == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["runs/none", "--reward", "letters"], "not a run directory"),
        (["runs/first", "--reward", "nope"], "unknown reward"),
        (["runs/first", "--reward", "letters", "--steps", "x"], "--steps 'x'"),
        (["runs/first", "--reward", "letters", "--steps", "1-"], "--steps '1-'"),
        (["runs/first", "--reward", "letters", "--steps", "7"], "no chains of steps 7"),
    ],
)
def test_rescore_refuses_what_it_cannot_read(here: Path, arguments: list[str], words: str) -> None:
    stored_run(here)
    with pytest.raises(BadInput) as error:
        call(rewards_app, "rescore", *arguments)
    assert words in str(error.value)
