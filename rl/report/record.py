"""What a run directory holds, read for its report. Whatever is missing is None or empty, never an error."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import zstandard

from rewards.errors import BadInput, Fault
from rl.config import Config
from rl.evaluation.sources import read_cells
from rl.evaluator import headline, read_groups
from rl.metrics import Row, read_metrics
from rl.rundir import RunDir, open_run
from rollout.types import Group

Cell = dict[str, Any]

CHANGES = "changes"
"""Name of the file in eval/ that says what RL changed; the others hold cells."""


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
    changes: dict[str, Any] | None  # eval/changes.json

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.run.path.resolve().name

    @property
    def steps(self) -> int:
        """Steps that are done."""
        return int(self.rows[-1]["step"]) if self.rows else int(self.summary.get("steps", 0))

    @cached_property
    def comparison(self) -> Comparison | None:
        """Base and final where the run has them, else the first and the last evaluation along the way."""
        along = [label for label in self.evaluations if re.fullmatch(r"step-\d+", label)]
        if {"base", "final"} <= self.evaluations.keys():
            labels, names = ("base", "final"), ("base", "trained")
        elif len(along) > 1:
            labels = (along[0], along[-1])
            names = (along[0].replace("-", " "), along[-1].replace("-", " "))
        else:
            return None
        cells = list(_matched(*(self.evaluations[label]["cells"] for label in labels)))
        return Comparison(labels, names, cells) if cells else None

    def chains(self, label: str) -> list[Group] | None:
        """The scored chains of one evaluation, None where they were not kept or are damaged."""
        try:
            return read_groups(self.run, label)
        except (OSError, ValueError, Fault, zstandard.ZstdError):
            return None


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
    files = {file.stem: file for file in sorted(run.eval.glob("*.json"), key=_order)}
    changes = _json(files.pop(CHANGES)) if CHANGES in files else None
    for file in files.values():
        read_cells(file)  # says what is wrong with it
    evaluations = {label: _json(file) for label, file in files.items()}
    summary = _json(run.summary) if run.summary.exists() else {}
    return Record(run, config, problem, rows, summary, evaluations, changes)


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise BadInput(f"{path} is broken JSON: {error}; remove it or make it anew") from None
    if not isinstance(data, dict):
        raise BadInput(f"{path} must hold a JSON object, not {type(data).__name__}; remove it or make it anew")
    return data


def _order(path: Path) -> tuple[int, int, str]:
    """The base first, the final one last, steps between them by number."""
    step = re.search(r"step-(\d+)$", path.stem)
    return {"base": 0, "final": 2}.get(path.stem, 1), int(step[1]) if step else 0, path.stem


def _matched(before: list[Cell], after: list[Cell]) -> Iterator[tuple[Cell, Cell]]:
    """Cells of the same task and prompt, each without a cap on thinking where there is one such."""
    for key in dict.fromkeys((cell["task"], cell["prompt"]) for cell in before):
        pair = [[cell for cell in cells if (cell["task"], cell["prompt"]) == key] for cells in (before, after)]
        if all(pair):
            yield headline(pair[0]), headline(pair[1])
