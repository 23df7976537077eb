"""`ponder scaling` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rl.cli import app
from rl.exits import run_command
from tests.rl.evaluation.synthetic import cell, outcomes, write_cells, write_run

PICTURES = {f"scaling-{axis}.{kind}" for axis in ("train", "thinking") for kind in ("png", "svg")}


def ponder(*arguments: object) -> int:
    return run_command(lambda: app([str(a) for a in arguments], standalone_mode=False))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "runs/axes", steps=(0, 10, 20))


def test_pictures_go_into_the_run_and_words_to_stdout(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ponder("scaling", run) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("training axis: undecided")
    assert lines[1].startswith("thinking axis: ")
    assert {Path(line).name for line in lines[2:]} == PICTURES
    assert all(Path(line).parent == run and Path(line).stat().st_size > 5000 for line in lines[2:])


def test_json_alone_is_on_stdout(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ponder("scaling", run, "--json", "--x", "tokens", "--out", tmp_path / "deep/new") == 0
    data = json.loads(capsys.readouterr().out)
    assert set(data) == {"train_axis", "thinking_axis"}
    assert data["train_axis"]["x"] == "tokens"
    assert {path.name for path in (tmp_path / "deep/new").iterdir()} == PICTURES


def test_several_sources_draw_into_the_working_directory(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ponder("scaling", run, run) == 0
    assert {path.name for path in tmp_path.glob("scaling*")} == PICTURES


def test_one_axis_gives_its_picture(tmp_path: Path) -> None:
    rows = [cell(outcomes(mean, 100, 1, 1), cap, budget=cap) for mean, cap in ((0.2, 16), (0.5, 32))]
    path = write_cells(tmp_path / "e.json", rows)
    assert ponder("scaling", path, "--out", tmp_path) == 0
    assert {p.name for p in tmp_path.glob("scaling*")} == {"scaling-thinking.png", "scaling-thinking.svg"}


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ponder("scaling", tmp_path / "nowhere") == 2
    assert ponder("scaling", tmp_path) == 2
    (tmp_path / "file").write_text("")
    run = write_run(tmp_path / "r", steps=(0, 10))
    assert ponder("scaling", run, "--out", tmp_path / "file/x") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("ponder: ") for line in lines)
    assert "choose another --out" in lines[2]
