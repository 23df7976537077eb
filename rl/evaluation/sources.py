"""Run directories and evaluation files -> points of both axes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rewards.errors import BadInput
from rl.config import read_yaml
from rl.evaluation.points import COMPUTE, Accuracy, Cell, Policy, RunPoints, TrainPoint
from rl.metrics import Row, read_metrics
from rl.rundir import RunDir
from rollout.evaluate import pass_at_1, wilson


class CellRow(BaseModel):
    """What the axes need of a cell; `outcomes` holds (correct, judged) of each problem where the file tells."""

    model_config = ConfigDict(allow_inf_nan=False, frozen=True)

    prompt: str
    budget: int | None
    temperature: float | None = None
    n_problems: int = Field(ge=1)
    n_samples: int = Field(ge=1)
    accuracy: float = Field(alias="pass@1", ge=0, le=1)
    ci95: tuple[float, float]
    tokens: float = Field(alias="tokens_mean", gt=0)
    pass_at: dict[int, float] = Field({}, alias="pass@k")
    majority_at: dict[int, float] = Field({}, alias="majority@k")
    outcomes: list[tuple[int, int]] | None = None


class EvalFile(BaseModel):
    """eval/*.json, and what `ponder eval --out` writes."""

    cells: list[CellRow] = Field(min_length=1)


def read_sources(paths: Sequence[Path]) -> list[RunPoints]:
    """Runs in the order given, each followed by the runs in its sub-directories (other seeds); evaluation files last.

    Files in a run's eval/ are points of that run, others are policies by their names. Raises BadInput.
    """
    runs: list[RunPoints] = []
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            runs += [read_run(folder) for folder in _run_folders(path)]
        elif path.is_file():
            files.append(path)
        else:
            raise BadInput(f"{path}: no such run directory or evaluation file")
    owners = {path: path.resolve().parents[1] for path in files if _in_run(path)}
    for folder in dict.fromkeys(owners.values()):
        runs.append(read_run(folder, [path.stem for path, owner in owners.items() if owner == folder]))
    loose = tuple(_policy(path.stem, read_cells(path)) for path in files if path not in owners)
    runs += [RunPoints("evaluations", policies=loose)] if loose else []
    if not any(run.train or run.policies for run in runs):
        raise BadInput(f"{' '.join(map(str, paths))}: no evaluation in it; set eval.every, or give eval files")
    return runs


def read_run(path: Path, labels: Sequence[str] | None = None) -> RunPoints:
    """The points of one run directory, of `labels` alone where given; `eval/` may be absent. Raises BadInput."""
    run = RunDir(path)
    rows = {row["step"]: row for row in _metrics(run.metrics)}
    files = {file.stem: file for file in run.eval.glob("*.json") if labels is None or file.stem in labels}
    names = {"base": "base"} | {f"budgets-step-{n}": f"step {n}" for n in _steps(files, "budgets-step-")}
    return RunPoints(
        path.resolve().name,
        tuple(_train_point(step, files[f"step-{step}"], rows) for step in _steps(files, "step-")),
        tuple(
            _policy(name, read_cells(files[label]))
            for label, name in (names | {"final": "final"}).items()
            if label in files
        ),
        tuple(rows.values()),
        read_yaml(run.config) if run.config.is_file() else {},
    )


def read_cells(path: Path) -> list[CellRow]:
    """The cells of an evaluation file, or BadInput."""
    try:
        return EvalFile.model_validate_json(path.read_bytes()).cells
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BadInput(f"{path} is no evaluation file of `ponder eval` or a run: {where}: {first['msg']}") from None


def _run_folders(path: Path) -> list[Path]:
    seeds = sorted(folder for folder in path.iterdir() if (folder / "metrics.jsonl").is_file())
    if (path / "metrics.jsonl").is_file() or (path / "eval").is_dir():
        return [path, *seeds]
    if not seeds:
        raise BadInput(f"{path} is not a run directory (no metrics.jsonl and no eval/ in it)")
    return seeds


def _in_run(path: Path) -> bool:
    """Whether an evaluation file is one of a run's own."""
    folder = path.resolve().parent
    return folder.name == "eval" and (folder.parent / "metrics.jsonl").is_file()


def _metrics(path: Path) -> list[Row]:
    try:
        return read_metrics(path)
    except ValueError as error:
        raise BadInput(f"{path} has a line that is not JSON ({error}); give the file as the run wrote it") from None


def _steps(labels: Sequence[str] | dict[str, Any], prefix: str) -> list[int]:
    """The numbers N of labels `prefix`N, ascending."""
    return sorted(int(found[1]) for label in labels if (found := re.fullmatch(rf"{prefix}(\d+)", label)))


def _train_point(step: int, path: Path, rows: dict[int, Row]) -> TrainPoint:
    """The chain cells with the largest cap, and the compute that the metrics count up to `step`."""
    if step and step not in rows:
        raise BadInput(f"{path}: metrics.jsonl has no step {step}; they are of two runs, or the run was cut short")
    row = rows.get(step, {})
    compute = {name: float(sum(row.get(key) or 0.0 for key in keys)) for name, keys in COMPUTE.items()}
    return TrainPoint(step, compute, _policy(path.stem, read_cells(path)).longest.accuracy)


def _policy(name: str, rows: list[CellRow]) -> Policy:
    """One Cell for each prompt and cap. Of several temperatures, the one with most cells (ties: the first) is taken."""
    temperatures = [row.temperature for row in rows]
    usual = max(dict.fromkeys(temperatures), key=temperatures.count)
    groups: dict[tuple[str, int | None], list[CellRow]] = {}
    for row in rows:
        if row.temperature == usual:
            groups.setdefault((row.prompt, row.budget), []).append(row)
    cells = [_cell(prompt, budget, group) for (prompt, budget), group in groups.items()]
    return Policy(name, tuple(sorted(cells, key=lambda cell: math.inf if cell.budget is None else cell.budget)))


def _cell(prompt: str, budget: int | None, group: list[CellRow]) -> Cell:
    """Cells of several tasks as one: means over all their problems."""
    problems, samples = [row.n_problems for row in group], [row.n_samples for row in group]

    def by_k(values: list[dict[int, float]]) -> dict[int, float]:
        ks = sorted(set.intersection(*map(set, values)))
        return {k: float(np.average([value[k] for value in values], weights=problems)) for k in ks}

    tokens = float(np.average([row.tokens for row in group], weights=samples))
    pass_at, majority_at = by_k([row.pass_at for row in group]), by_k([row.majority_at for row in group])
    return Cell(prompt, budget, tokens, _accuracy(group), pass_at, majority_at)


def _accuracy(group: list[CellRow]) -> Accuracy:
    problems = sum(row.n_problems for row in group)
    value = sum(row.accuracy * row.n_problems for row in group) / problems
    pairs = [pair for row in group for pair in row.outcomes or []]
    told = all(row.outcomes for row in group)
    correct, judged = np.array(pairs, dtype=float).T if told else (None, None)
    if len(group) == 1:
        low, high = group[0].ci95
    elif told:
        low, high = pass_at_1([[True] * c + [False] * (j - c) for c, j in pairs])["ci95"]
    else:
        low, high = wilson(value, problems)
    return Accuracy(value, (low, high), problems, correct, judged)
