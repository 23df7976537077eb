"""What a run directory holds, read for its report. Whatever is missing is None or empty, never an error."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.errors import BadInput
from rl.config import Config
from rl.evaluation.axes import read_cells
from rl.evaluator import headline
from rl.metrics import Row, read_metrics
from rl.rundir import RunDir, open_run
from rollout.prompt import read_json


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
    comparison: dict[str, Any] | None  # of `compare`


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
    contents = {file.stem: read_json(file) for file in sorted(run.eval.glob("*.json"), key=_order)}
    changes = contents.pop("changes", {})
    for label in contents:
        read_cells(run.eval / f"{label}.json")  # says what is wrong with it
    rows, summary = read_metrics(run.metrics), read_json(run.summary)
    return Record(run, config, problem, rows, summary, contents, changes, compare(contents))


def compare(evaluations: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Base and final where the run has them, else the first and the last evaluation along the way: before and after.

    {labels: of their files, names: for a reader, cells: [(before, after)] of each task and prompt, without a cap}.
    """
    along = [label for label in evaluations if re.fullmatch(r"step-\d+", label)]
    labels = ["base", "final"] if {"base", "final"} <= evaluations.keys() else [*along[:1], *along[1:][-1:]]
    found: list[dict[tuple[str, str], list[dict[str, Any]]]] = []
    for label in labels:
        found.append({})
        for cell in evaluations[label]["cells"]:
            found[-1].setdefault((cell["task"], cell["prompt"]), []).append(cell)
    if len(found) < 2:
        return None
    cells = [(headline(cells), headline(found[1][key])) for key, cells in found[0].items() if key in found[1]]
    names = [label.replace("final", "trained").replace("-", " ") for label in labels]
    return {"labels": labels, "names": names, "cells": cells} if cells else None


def _order(path: Path) -> tuple[bool, bool, int, str]:
    """The base first, the final one last, steps between them by number."""
    step = re.search(r"step-(\d+)$", path.stem)
    return path.stem == "final", path.stem != "base", int(step[1]) if step else 0, path.stem
