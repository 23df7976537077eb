"""The command line: exit codes, one clear line on bad input, help without heavy imports."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rewards.errors import BadInput, Fault
from rl import cli
from rl.exits import CheckFailed, Stopped, run_command

ROOT = Path(__file__).parents[2]
QUICKSTART = "configs/quickstart.yaml"


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(ROOT)


def ponder(*arguments: str) -> int:
    return run_command(lambda: cli.app([*arguments], standalone_mode=False))


def refused(capsys, *arguments: str) -> str:
    """Run a command that must be refused, and return its one line."""
    assert ponder(*arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no.such.key=1"], "no.such.key"),
        (["rollout.group_sizee=4"], "rollout.group_size"),
        (["rollout.group_size=minus"], "minus"),
        (["rollout.group_size=1"], "2 or more"),
        (["rollout.top_p=0.9"], "rollout.top_p"),
        (["algorithm=gpro"], "grpo"),
        (["model.path=no-such-model"], "no-such-model"),
        (["task=no-such-task"], "no-such-task"),
        (["task=nope.jsonl"], "nope.jsonl"),
        (["task=countdown?nmbers=3"], "numbers"),
        (["reward=none.py:f"], "none.py"),
        (["rollout.max_tokens=100000"], "context"),
        (["sync.dir=no-such-dir"], "no-such-dir"),
        (["rollout.servers=[http://127.0.0.1:9]"], "PONDER_API_KEY"),
    ],
)
def test_train_refuses_in_one_line(capsys, tmp_path, arguments: list[str], words: str) -> None:
    line = refused(capsys, "train", QUICKSTART, f"run.dir={tmp_path}", *arguments)
    assert words in line


def test_missing_files_and_runs_are_named(capsys, tmp_path) -> None:
    assert "nope.yaml" in refused(capsys, "train", "nope.yaml")
    assert "configs/" in refused(capsys, "train")
    assert str(tmp_path) in refused(capsys, "train", "--resume", str(tmp_path))
    assert "holds chains" in refused(capsys, "train", QUICKSTART, f"run.dir={tmp_path}", "--replay", str(tmp_path))
    assert "none-model" in refused(capsys, "eval", "none-model", "--task", "countdown")
    assert "nope" in refused(capsys, "tasks", "sample", "nope")
    assert "--split" in refused(capsys, "eval", "x", "--task", "countdown", "--split", "best")
    assert "1,x" in refused(capsys, "eval", "x", "--task", "countdown", "--k", "1,x")
    assert "fancy" in refused(capsys, "eval", "x", "--task", "countdown", "--prompt", "fancy")
    assert "No such command" in refused(capsys, "trian")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (['{"id":"a","prompt":"1+1?","answer":"2"}', "not json"], "2"),
        (['{"id":"a","prompt":"1+1?","answer":"2"}', '{"id":"a","prompt":"1+2?","answer":"3"}'], "a"),
        (['{"id":"a","answer":"2"}'], "prompt"),
    ],
)
def test_broken_rows_are_named(capsys, tmp_path, lines: list[str], words: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(lines) + "\n")
    line = refused(capsys, "train", QUICKSTART, f"run.dir={tmp_path}", f"task={path}")
    assert str(path) in line
    assert words in line


def test_a_model_directory_without_a_tokenizer_is_refused(capsys, tmp_path) -> None:
    (tmp_path / "config.json").write_text((ROOT / "configs/models/bytes-tiny/config.json").read_text())
    line = refused(capsys, "train", QUICKSTART, f"run.dir={tmp_path / 'runs'}", f"model.path={tmp_path}")
    assert "tokenizer" in line


def test_print_config_and_dry_run_start_nothing(capsys, tmp_path) -> None:
    assert ponder("train", QUICKSTART, "train.steps=3", "--print-config") == 0
    assert "steps: 3" in capsys.readouterr().out
    assert ponder("config", "show", QUICKSTART) == 0
    assert ponder("train", QUICKSTART, f"run.dir={tmp_path}", "--dry-run") == 0
    assert "nothing was started" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_config_docs_check_tells_a_stale_file(capsys, tmp_path) -> None:
    out = tmp_path / "c.md"
    assert ponder("config", "docs", "--out", str(out), "--check") == 1
    assert ponder("config", "docs", "--out", str(out)) == 0
    assert ponder("config", "docs", "--out", str(out), "--check") == 0


def test_a_users_rewards_py_is_named(capsys, tmp_path, monkeypatch) -> None:
    (tmp_path / "rewards.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert str(tmp_path / "rewards.py") in refused(capsys, "train", str(ROOT / QUICKSTART))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadInput("x"), 2),
        (Fault("x"), 3),
        (CheckFailed(), 1),
        (Stopped(2), 130),
        (Stopped(15), 143),
        (KeyboardInterrupt(), 130),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x/metrics.jsonl"), 2),
    ],
)
def test_exit_codes(capsys, error: BaseException, code: int) -> None:
    def fail() -> None:
        raise error

    assert run_command(fail) == code
    assert capsys.readouterr().err.count("\n") == (0 if code == 1 else 1)


def test_other_errors_are_not_swallowed() -> None:
    with pytest.raises(OSError, match="other"):
        run_command(lambda: (_ for _ in ()).throw(OSError(errno.EIO, "other")))


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from rl import cli; from rl.exits import run_command;"
        "rc = run_command(lambda: cli.app(['--help'], standalone_mode=False));"
        "heavy = [m for m in ('torch', 'transformers', 'vllm', 'numpy') if m in sys.modules];"
        "print(rc, heavy, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().endswith("0 []")
    for command in ("train", "eval", "serve", "selftest", "rewards", "tasks", "config", "doctor"):
        assert command in done.stdout


@pytest.mark.parametrize("command", ["train", "eval", "serve", "selftest", "doctor"])
def test_every_command_has_an_example(capsys, command: str) -> None:
    assert ponder(command, "--help") == 0
    assert f"Example: ponder {command}" in " ".join(capsys.readouterr().out.split())


def test_eval_with_transformers_writes_cells(capsys, tmp_path) -> None:
    out = tmp_path / "e.json"
    arguments = ["--task", "letters", "--task", "countdown?numbers=3", "--task", "countdown?numbers=4"]
    arguments += ["--problems", "6", "--k", "1,2", "--max-tokens", "3", "--answer", "2"]
    model = "configs/models/bytes-tiny"
    assert ponder("eval", model, *arguments, "--sampler", "transformers", "--no-think", "--out", str(out)) == 0
    assert "letters" in capsys.readouterr().out
    result = json.loads(out.read_text())
    assert result["command"].startswith(Path(sys.argv[0]).name)
    assert result["versions"]["torch"]
    cell = result["cells"][0]
    assert [cell["task"] for cell in result["cells"]] == ["letters", "countdown?numbers=3", "countdown?numbers=4"]
    assert [judged for _, judged in cell["outcomes"]] == [2] * 6
    assert (cell["task"], cell["split"], cell["n_problems"], cell["n_samples"]) == ("letters", "test", 6, 12)
    assert set(cell["pass@k"]) == {"1", "2"}


def test_module_form_parses_the_same(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rl.train", QUICKSTART, "train.stepz=3"],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert done.returncode == 2
    assert "train.steps" in done.stderr
    assert "Traceback" not in done.stderr
