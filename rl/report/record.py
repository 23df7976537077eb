"""What a run directory holds, read for its report. Whatever is missing is None or empty, never an error."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rewards.errors import BadInput
from rl.config import Config
from rl.evaluation.sources import read_cells
from rl.evaluator import headline
from rl.metrics import Row, read_metrics
from rl.rundir import RunDir, open_run

Cell = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same problems: before and after."""

    labels: tuple[str, str]  # of their files
    names: tuple[str, str]  # for a reader
    cells: list[tuple[Cell, Cell]]  # without a cap on thinking; a pair for each task and prompt


@dataclass(frozen=True)
class Record:
    """One run: its configuration, its steps, its evaluations and its summary."""

    run: RunDir
    config: Config | None  # None where config.yaml is another version's
    config_problem: str  # why, in that case
    rows: list[Row]
    summary: dict[str, Any]  # {} while the run goes on
    evaluations: dict[str, dict[str, Any]]  # label -> {cells, versions, command}, in the order of the run
    changes: dict[str, Any]  # eval/changes.json: what RL changed
    comparison: Comparison | None


def read_record(path: Path) -> Record:
    """Everything below `path`. Raises BadInput where it is no run directory, or a file in it is broken."""
    run = RunDir(path)
    config, problem = None, ""
    try:
        config = open_run(path)[1]
    except BadInput as error:
        if not run.config.is_file():
            raise
        problem = str(error)
    try:
        rows = read_metrics(run.metrics)
    except ValueError as error:
        raise BadInput(f"{run.metrics} is broken: {error}; remove the line that is no JSON") from None
    files = sorted(run.eval.glob("*.json"), key=_order)
    contents = {file.stem: _read_object(file) for file in files}
    changes = contents.pop("changes", {})
    for label in contents:
        read_cells(run.eval / f"{label}.json")  # says what is wrong with it
    summary = _read_object(run.summary) if run.summary.exists() else {}
    return Record(run, config, problem, rows, summary, contents, changes, compare(contents))


def compare(evaluations: dict[str, dict[str, Any]]) -> Comparison | None:
    """Base and final where the run has them, else the first and the last evaluation along the way."""
    along = [label for label in evaluations if re.fullmatch(r"step-\d+", label)]
    if {"base", "final"} <= evaluations.keys():
        labels, names = ("base", "final"), ("base", "trained")
    elif len(along) > 1:
        labels = along[0], along[-1]
        names = labels[0].replace("-", " "), labels[1].replace("-", " ")
    else:
        return None
    before, after = (_by_task(evaluations[label]["cells"]) for label in labels)
    cells = [(headline(before[key]), headline(after[key])) for key in before if key in after]
    return Comparison(labels, names, cells) if cells else None


def _by_task(cells: list[Cell]) -> dict[tuple[str, str], list[Cell]]:
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell["task"], cell["prompt"]), []).append(cell)
    return found


def _read_object(path: Path) -> dict[str, Any]:
    try:
        return TypeAdapter(dict[str, Any]).validate_json(path.read_bytes())
    except ValidationError as error:
        raise BadInput(f"{path} is broken: {error.errors()[0]['msg']}; remove it or make it anew") from None


def _order(path: Path) -> tuple[bool, bool, int, str]:
    """The base first, the final one last, steps between them by number."""
    step = re.search(r"step-(\d+)$", path.stem)
    return path.stem == "final", path.stem != "base", int(step[1]) if step else 0, path.stem
