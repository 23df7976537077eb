"""`ponder eval` end to end without vLLM: options, few-shot prompts, repeats, resuming, a server's URL."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rewards.errors import BadInput
from rewards.tasks import load_task
from rl import evalcommand
from rl.evalcommand import EvalRequest, parse_request, parse_tasks, worked_examples
from rl.views import RunProgress
from rollout import store
from rollout.server.middleware import KEY_VARIABLE
from rollout.store import EvalStore, read
from tests.models import tiny_model
from tests.rl.test_cli import ROOT, ponder, refused

TASKS = ("--task", "letters,countdown?numbers=3&style=plain", "--problems", "8", "--k", "1,2")
SMALL = (*TASKS, "--budget", "0,4,none", "--max-tokens", "16", "--answer", "4", "--sampler", "transformers")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model(tmp_path_factory.mktemp("eval") / "tiny", context=2048))


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def cells_of(out: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(out.read_text())["cells"]
    return cells


def parsed(**lists: str) -> EvalRequest:
    """A request of which these options are given."""
    lists = {"ks": "1", "budgets": "", "prompts": "cot"} | lists
    others: dict[str, Any] = {
        "target": "m", "problems": 1, "split": "test", "shots": 3, "temperature": 1.0, "max_tokens": None, "answer": 64,
        "reward": None, "sampler": "vllm", "think": True, "tokenizer": None, "seed": 0, "out": None, "resume": False,
        "as_json": False,
    }  # fmt: skip
    return parse_request(tasks=["letters"], **lists, **others)


class TestParsing:
    def test_budgets(self) -> None:
        assert parsed(budgets="0,64, none,64").budgets == (0, 64, None)
        assert parsed(budgets="").budgets == (None,)
        for wrong in ("-1", "1.5", "all"):
            with pytest.raises(BadInput, match="--budget"):
                parsed(budgets=wrong)

    def test_ks(self) -> None:
        assert parsed(ks="1, 8").ks == (1, 8)
        with pytest.raises(BadInput, match=r"--k '0'.*1 or more"):
            parsed(ks="0")

    def test_prompts(self) -> None:
        assert parsed(prompts="direct, cot,direct").prompts == ("direct", "cot")
        with pytest.raises(BadInput, match=r"--prompt 'cot,x'.*cot, direct, fewshot"):
            parsed(prompts="cot,x")

    def test_tasks_between_commas(self, tmp_path: Path) -> None:
        assert parse_tasks(["countdown?numbers=3,letters", "a.jsonl"]) == ("countdown?numbers=3", "letters", "a.jsonl")
        assert parse_tasks(["datasets:x?split=test,my.jsonl"]) == ("datasets:x?split=test", "my.jsonl")
        assert parse_tasks(["mine, too.jsonl"]) == ("mine, too.jsonl",)  # `mine` is no task: one file
        both = tmp_path / "a.jsonl,b.jsonl"
        both.touch()
        assert parse_tasks([str(both)]) == (str(both),)
        with pytest.raises(BadInput, match="letters is given twice"):
            parse_tasks(["letters", "countdown,letters"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--temperature", "0", "--k", "4"], "--temperature 0 gives the same chain 4 times"),
        (["--budget", "64,512", "--max-tokens", "512"], "need 576 tokens, --max-tokens is 512"),
        (["--prompt", "fewshot", "--split", "all"], "--split all asks"),
        (["--prompt", "fewshot", "--task", "datasets:none"], "not at hand"),
        (["--budget", "8", "--no-think"], "does not think"),
        (["--resume"], "--out F.json"),
        (["--budget", "100000"], "need 100"),
        (["--reward", "none.py:f"], "none.py"),
    ],
)
def test_refused_in_one_line_before_anything_starts(capsys: Any, model: str, options: list[str], words: str) -> None:
    assert words in refused(capsys, "eval", model, "--task", "letters", "--problems", "2", *options)


def test_the_same_twice_gives_the_same_and_a_kill_changes_nothing(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole.json", tmp_path / "e.json"
    options = (*SMALL, "--prompt", "cot,direct,fewshot", "--shots", "2")
    assert ponder("eval", model, *options, "--out", str(whole)) == 0
    assert ponder("eval", model, *options, "--out", str(out)) == 0
    cells = cells_of(out)
    assert cells == cells_of(whole)
    names = [(c["prompt"], c["task"].partition("?")[0], c["budget"]) for c in cells]
    by_task = [(task, budget) for task in ("letters", "countdown") for budget in (0, 4, None)]
    assert names == [
        *(("cot", *one) for one in by_task),
        *(("direct", task, None) for task in ("letters", "countdown")),
        *(("fewshot", *one) for one in by_task),
    ]
    samples = tmp_path / "e.samples.jsonl.zst"
    kept = {chain.id for _, groups in read(samples) for group in groups for chain in group.chains}
    assert {"cot/letters/test/0/1", "cot/letters/test/0/1/4", "direct/letters/test/7/0"} <= kept

    out.unlink()
    samples.write_bytes(samples.read_bytes()[: samples.stat().st_size // 2])  # killed half way
    assert ponder("eval", model, *options, "--out", str(out), "--resume") == 0
    assert cells_of(out) == cells

    monkeypatch.setattr(evalcommand, "open_sampler", None)  # a finished one needs neither model nor server
    assert ponder("eval", model, *options, "--out", str(out), "--resume") == 0
    assert cells_of(out) == cells


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_is_done(
    capsys: Any, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    monkeypatch.setattr(store, "CHUNK", 4)
    whole, out = tmp_path / "whole.json", tmp_path / "e.json"
    assert ponder("eval", model, *SMALL, "--out", str(whole)) == 0
    with monkeypatch.context() as patched:
        chain, seen = RunProgress.chain, []

        def interrupted(self: RunProgress) -> None:
            chain(self)
            seen.append(1)
            if len(seen) == 13:
                os.kill(os.getpid(), number)

        patched.setattr(RunProgress, "chain", interrupted)
        assert ponder("eval", model, *SMALL, "--out", str(out)) == code
    assert re.search(r"after [67] of 16 questions, kept in .*--resume goes on", capsys.readouterr().err)
    assert not out.exists()
    assert ponder("eval", model, *SMALL, "--out", str(out), "--resume") == 0
    assert cells_of(out) == cells_of(whole)


def test_resuming_something_else_is_refused_by_name(capsys: Any, model: str, tmp_path: Path) -> None:
    small = ("--problems", "2", "--max-tokens", "4", "--answer", "2", "--sampler", "transformers", "--no-think")
    arguments = ("eval", model, "--task", "letters", *small, "--out", str(tmp_path / "e.json"))
    assert ponder(*arguments) == 0
    capsys.readouterr()
    for options, words in [
        (["--temperature", "0.5"], "made with temperature 1.0, not 0.5"),
        (["--seed", "3"], "made with seed 0, not 3"),
        (["--k", "2"], "made with samples 1, not 2"),
        (["--prompt", "direct"], 'made with prompts ["cot"], not ["direct"]'),
        (["--sampler", "vllm"], 'made with sampler "transformers", not "vllm"'),
        (["--problems", "3"], "made with problems and prompts"),
        (["--reward", "exact_match"], "made with problems and prompts"),
    ]:
        assert words in refused(capsys, *arguments, "--resume", *options)
    config = Path(model) / "config.json"
    before = config.read_text()
    config.write_text(before + " ")
    try:
        assert "made with weights" in refused(capsys, *arguments, "--resume")
    finally:
        config.write_text(before)


def test_the_guide_s_commands_are_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[evalcommand.EvalRequest] = []
    monkeypatch.setattr(evalcommand, "run_eval", requests.append)
    lines = [line.strip() for line in (ROOT / "docs/evaluation.md").read_text().splitlines()]
    commands = [line for line in lines if line.startswith("ponder eval")]
    assert [ponder(*shlex.split(line)[1:]) for line in commands] == [0] * len(commands)
    assert len(requests) == len(commands) >= 6
    assert all(requests[0].out == request.out for request in requests if request.resume)


def test_worked_examples_are_train_problems_with_gold_answers(tmp_path: Path) -> None:
    task = load_task("countdown?numbers=3", seed=5)
    shots = worked_examples(task, 3)
    assert shots == [(p.prompt, task.gold(p)) for p in (task.problem(i, "train") for i in range(3))]
    assert shots != worked_examples(load_task("countdown?numbers=3", seed=6), 3)
    path = tmp_path / "t.jsonl"
    path.write_text('{"prompt": "a", "answer": 1, "split": "train"}\n{"prompt": "b", "answer": 2, "split": "test"}\n')
    assert worked_examples(load_task(str(path)), 1) == [("a", "\\boxed{1}")]
    with pytest.raises(BadInput, match="has 1 train problems, --shots 2"):
        worked_examples(load_task(str(path)), 2)


def test_max_tokens_make_room_for_the_largest_budget() -> None:
    request = parsed(ks="1,4", budgets="0,512,none")
    assert (request.plan.max_tokens, request.plan.samples) == (576, 4)


class Server(BaseHTTPRequestHandler):
    """As much of vLLM as the client asks for; every completion is `7` and the stop token."""

    seen: list[str] = []  # noqa: RUF012
    asked: list[str | None] = []  # noqa: RUF012

    def do_GET(self) -> None:
        adapters = [{"id": f"ponder-ab-v{n}", "root": "/adapter", "parent": "policy"} for n in self.server.adapters]  # type: ignore[attr-defined]
        self._answer({"data": [{"id": "policy", "root": self.server.model}, *adapters]})  # type: ignore[attr-defined]

    def do_POST(self) -> None:
        self.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))).get("model"))
        self.seen.append(self.headers["authorization"])
        content = [{"token_id": i, "logprob": -0.5} for i in (55, 258)]
        choice = {"token_ids": [55, 258], "logprobs": {"content": content}, "finish_reason": "stop"}
        self._answer({"choices": [choice]})

    def _answer(self, data: dict[str, Any]) -> None:
        body = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url(model: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.model, server.adapters = model, [16, 17]  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("tokenizer", [True, False])
def test_a_server_s_url(url: str, model: str, tmp_path: Path, tokenizer: bool) -> None:
    tasks, out = tmp_path / "t.jsonl", tmp_path / "e.json"
    rows = [{"prompt": f"{a} + {7 - a}?", "answer": 7 if a else 8, "split": "test"} for a in range(4)]
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["eval", url, "--task", str(tasks), "--no-think", "--max-tokens", "8", "--out", str(out)]
    assert ponder(*arguments, *(["--tokenizer", model] if tokenizer else [])) == 0
    (cell,) = cells_of(out)
    assert (cell["model"], cell["pass@1"], cell["n_problems"]) == (url, 0.75, 4)
    assert cell["outcomes"] == [[0, 1], [1, 1], [1, 1], [1, 1]]
    assert set(Server.seen) == {"Bearer secret"}
    assert set(Server.asked) == {"ponder-ab-v17"}  # the newest of a run that trains adapters, not its base


def test_a_server_that_is_lost_leaves_what_is_done(capsys: Any, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    arguments = ["eval", "http://127.0.0.1:9", "--tokenizer", model, "--task", "letters", "--problems", "1"]
    assert ponder(*arguments, "--max-tokens", "8", "--answer", "4") == 3
    assert "http://127.0.0.1:9 is down" in capsys.readouterr().err


def test_nothing_is_written_without_out() -> None:
    kept = EvalStore(None, {}, resume=False)
    kept.begin()
    assert kept.groups == {}
