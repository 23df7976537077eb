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
    comparison: dict[str, Any] | None
    """{labels: of their files, names: for a reader, cells: [(before, after)] of each task and prompt, without a cap}.

    Base and final where the run has them, else the first and the last evaluation along the way."""


def read_record(path: Path) -> Record:
    """Everything below `path`. Raises BadInput where it is no run directory, or a file in it is broken."""

    def in_order(file: Path) -> tuple[bool, bool, int, str]:  # the base, steps by their numbers, the final one
        return file.stem == "final", file.stem != "base", int(*re.findall(r"step-(\d+)$", file.stem)), file.stem

    run, config, problem = RunDir(path), None, ""
    try:
        config = open_run(path)[1]
    except BadInput as error:
        if not run.config.is_file():
            raise
        problem = str(error)
    contents: dict[str, dict[str, Any]] = {}
    for file in sorted(run.eval.glob("*.json"), key=in_order):
        contents[file.stem] = read_json(file)
        if file.stem != "changes":
            read_cells(file)  # says what is wrong with it
    changes, summary = contents.pop("changes", {}), read_json(run.summary)
    along = [label for label in contents if re.fullmatch(r"step-\d+", label)]
    labels = ["base", "final"] if {"base", "final"} <= contents.keys() else [*along[:1], *along[1:][-1:]]
    sides: list[dict[tuple[str, str], list[dict[str, Any]]]] = [{} for _ in labels]
    for label, side in zip(labels, sides, strict=True):
        for cell in contents[label]["cells"]:
            side.setdefault((cell["task"], cell["prompt"]), []).append(cell)
    comparison = None
    if len(sides) == 2 and (both := [key for key in sides[0] if key in sides[1]]):
        names = [label.replace("final", "trained").replace("-", " ") for label in labels]
        cells = [tuple(headline(side[key]) for side in sides) for key in both]
        comparison = {"labels": labels, "names": names, "cells": cells}
    return Record(run, config, problem, read_metrics(run.metrics), summary, contents, changes, comparison)
