"""Run directories and evaluation files -> points of both axes."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from rewards.errors import BadInput
from rl.config import read_yaml
from rl.evaluation.accuracy import Accuracy
from rl.evaluation.thinking import Cell, Thinker
from rl.evaluation.training import COMPUTE, Run, TrainPoint
from rl.metrics import read_metrics
from rl.rundir import RunDir
from rollout.evaluate import wilson


class CellRow(BaseModel, allow_inf_nan=False):
    """What the axes need of a cell; `outcomes` holds (correct, judged) of each problem where the file tells."""

    prompt: str
    budget: int | None
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


def read_sources(paths: Sequence[Path]) -> tuple[list[Run], list[Thinker]]:
    """Runs in the order given, each followed by those in its sub-directories (other seeds); and the policies.

    Policies are those of evaluation files, by their names, then those of the first run that has any. Raises BadInput.
    """
    runs: list[Run] = []
    for path in (path for path in paths if not path.is_file()):
        inside = (path, *sorted(path.iterdir())) if path.is_dir() else ()
        found = [read_run(one) for one in inside if (one / "metrics.jsonl").is_file() or (one / "eval").is_dir()]
        if not found:
            raise BadInput(f"{path} is no evaluation file and no run directory (with metrics.jsonl or eval/ in it)")
        runs += found
    beside = [read_thinker(path.stem, path) for path in paths if path.is_file()]
    return runs, [*beside, *next((run.thinkers for run in runs if run.thinkers), ())]


def read_run(path: Path) -> Run:
    """Metrics, configuration and evaluations of one run directory; each may be absent. Raises BadInput."""
    run = RunDir(path)
    rows = {row["step"]: row for row in read_metrics(run.metrics)}
    points = []
    for step, file in _by_step(run.eval, "step-"):
        if step and step not in rows:
            raise BadInput(f"{file}: metrics.jsonl has no step {step}; they are of two runs, or the run was cut short")
        row = rows.get(step, {})
        compute = {name: float(sum(row.get(key) or 0.0 for key in keys)) for name, keys in COMPUTE.items()}
        points.append(TrainPoint(step, compute, read_thinker(file.stem, file).longest.accuracy))
    files = [(f"step {step}", file) for step, file in _by_step(run.eval, "budgets-step-")]
    files = [("base", run.eval / "base.json"), *files, ("final", run.eval / "final.json")]
    thinkers = [read_thinker(name, file) for name, file in files if file.is_file()]
    config = read_yaml(run.config) if run.config.is_file() else {}
    return Run(path.resolve().name, points, tuple(rows.values()), config, thinkers)


def read_thinker(name: str, path: Path) -> Thinker:
    """The policy that an evaluation file measured: one Cell for each prompt and cap. Raises BadInput."""
    groups: dict[tuple[str, int | None], list[CellRow]] = {}
    for row in read_cells(path):
        groups.setdefault((row.prompt, row.budget), []).append(row)
    cells = [_cell(group) for group in groups.values()]
    return Thinker(name, tuple(sorted(cells, key=lambda cell: math.inf if cell.budget is None else cell.budget)))


def read_cells(path: Path) -> list[CellRow]:
    """The cells of an evaluation file, or BadInput."""
    try:
        return EvalFile.model_validate_json(path.read_bytes()).cells
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BadInput(f"{path} is no evaluation file of `ponder eval` or a run: {where}: {first['msg']}") from None


def _by_step(folder: Path, prefix: str) -> list[tuple[int, Path]]:
    """(N, file) of the files `prefix`N.json, by N."""
    numbered = [(file.stem.removeprefix(prefix), file) for file in folder.glob(f"{prefix}*.json")]
    return sorted((int(number), file) for number, file in numbered if number.isdecimal())


def _cell(group: list[CellRow]) -> Cell:
    """Cells of several tasks as one: means over all their problems."""
    first, problems = group[0], [row.n_problems for row in group]

    def mean(values: Iterable[float], weights: Sequence[int] = problems) -> float:
        return float(np.average(list(values), weights=weights))

    pass_at, majority_at = (
        {k: mean(row[k] for row in rows) for k in rows[0] if all(k in row for row in rows)}
        for rows in ([row.pass_at for row in group], [row.majority_at for row in group])
    )
    pairs = [pair for row in group for pair in row.outcomes or []]
    outcomes = np.array(pairs, dtype=float) if all(row.outcomes for row in group) else None
    accuracy = Accuracy(mean(row.accuracy for row in group), first.ci95, sum(problems), outcomes)
    if len(group) > 1:
        low, high = wilson(accuracy.value, accuracy.size)
        accuracy = replace(accuracy, ci95=(low, high))
    tokens = mean((row.tokens for row in group), [row.n_samples for row in group])
    return Cell(first.prompt, first.budget, tokens, accuracy, pass_at, majority_at)
