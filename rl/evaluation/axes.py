"""Both axes of a run: read from run directories and evaluation files, fitted, judged, said in words and as JSON."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from rewards.errors import BadInput
from rl.config import read_yaml
from rl.evaluation.accuracy import Accuracy
from rl.evaluation.thinking import Cell, Thinker, ThinkingAxis, measure_thinking
from rl.evaluation.training import COMPUTE, Run, TrainAxis, TrainPoint, measure_training
from rl.metrics import read_metrics
from rl.rundir import RunDir
from rollout.evaluate import wilson


class Axes(NamedTuple):
    """What was measured; None = nothing to place on that axis."""

    train: TrainAxis | None
    thinking: ThinkingAxis | None


def read_axes(paths: Sequence[Path], x: str = "flops") -> Axes:
    """Read runs and evaluation files and measure both axes; `x` is a key of training.COMPUTE. Raises BadInput.
    The first run with two points or more is the training axis; the other runs, and those in a run's sub-directories,
    are its seeds. Policies are those of evaluation files, by their names, then those of the first run that has any."""
    runs: list[Run] = []
    for path in (path for path in paths if not path.is_file()):
        inside = (path, *sorted(path.iterdir())) if path.is_dir() else ()
        found = [read_run(one) for one in inside if (one / "metrics.jsonl").is_file() or (one / "eval").is_dir()]
        if not found:
            raise BadInput(f"{path} is no evaluation file and no run directory (with metrics.jsonl or eval/ in it)")
        runs += found
    beside = [read_thinker(path.stem, path) for path in paths if path.is_file()]
    policies = [*beside, *next((run.thinkers for run in runs if run.thinkers), ())]
    thinkers = [policy for policy in policies if policy.caps]
    train = [measure_training(run, x) for run in runs if len(run.points) > 1]
    several = any(len(thinker.caps) > 1 or thinker.samples for thinker in thinkers)
    if not train and not several:
        named = " ".join(map(str, paths))
        raise BadInput(f"{named}: one point makes no axis; set eval.every or eval.budgets in the run")
    first = train[0]._replace(seeds=tuple(train[1:])) if train else None
    return Axes(first, measure_thinking(thinkers) if several else None)


def verdicts(axes: Axes) -> dict[str, str]:
    """The two verdicts for summary.json; an axis without points is undecided."""
    return {f"{name}_axis": axis.verdict if axis else "undecided" for name, axis in axes._asdict().items()}


def to_json(axes: Axes) -> dict[str, Any]:
    """{train_axis, thinking_axis}, each null where nothing was measured."""
    return {f"{name}_axis": axis and axis.to_json() for name, axis in axes._asdict().items()}


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


class EvalFile(BaseModel):  # eval/*.json, and what `ponder eval --out` writes
    cells: list[CellRow] = Field(min_length=1)


def read_run(path: Path) -> Run:
    """Metrics, configuration and evaluations of one run directory; each may be absent. Raises BadInput."""
    run = RunDir(path)

    def by_step(prefix: str) -> list[tuple[int, Path]]:
        numbered = [(file.stem.removeprefix(prefix), file) for file in run.eval.glob(f"{prefix}*.json")]
        return sorted((int(number), file) for number, file in numbered if number.isdecimal())

    rows = {row["step"]: row for row in read_metrics(run.metrics)}
    points = []
    for step, file in by_step("step-"):
        if step and step not in rows:
            raise BadInput(f"{file}: metrics.jsonl has no step {step}; they are of two runs, or the run was cut short")
        row = rows.get(step, {})
        compute = {name: float(sum(row.get(key) or 0.0 for key in keys)) for name, keys in COMPUTE.items()}
        points.append(TrainPoint(step, compute, read_thinker(file.stem, file).longest.accuracy))
    files = [(f"step {step}", file) for step, file in by_step("budgets-step-")]
    files = [("base", run.eval / "base.json"), *files, ("final", run.eval / "final.json")]
    thinkers = [read_thinker(name, file) for name, file in files if file.is_file()]
    config = read_yaml(run.config) if run.config.is_file() else {}
    return Run(path.resolve().name, points, tuple(rows.values()), config, thinkers)


def read_thinker(name: str, path: Path) -> Thinker:
    """The policy that an evaluation file measured: one Cell for each prompt and cap, all tasks as one."""
    groups: dict[tuple[str, int | None], list[CellRow]] = {}
    for row in read_cells(path):
        groups.setdefault((row.prompt, row.budget), []).append(row)
    cells = []
    for (prompt, budget), group in groups.items():
        problems = [row.n_problems for row in group]
        mean = partial(np.average, weights=problems)  # over the problems of all tasks
        pass_at, majority_at = (
            {k: float(mean([row[k] for row in rows])) for k in rows[0] if all(k in row for row in rows)}
            for rows in ([row.pass_at for row in group], [row.majority_at for row in group])
        )
        pairs = [pair for row in group for pair in row.outcomes or []]
        outcomes = np.array(pairs, dtype=float) if all(row.outcomes for row in group) else None
        accuracy = Accuracy(float(mean([row.accuracy for row in group])), group[0].ci95, sum(problems), outcomes)
        if len(group) > 1:
            low, high = wilson(accuracy.value, accuracy.size)
            accuracy = accuracy._replace(ci95=(low, high))
        tokens = np.average([row.tokens for row in group], weights=[row.n_samples for row in group])
        cells.append(Cell(prompt, budget, float(tokens), accuracy, pass_at, majority_at))
    return Thinker(name, tuple(sorted(cells, key=lambda cell: math.inf if cell.budget is None else cell.budget)))


def read_cells(path: Path) -> list[CellRow]:
    """The cells of an evaluation file, or BadInput."""
    try:
        return EvalFile.model_validate_json(path.read_bytes()).cells
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BadInput(f"{path} is no evaluation file of `ponder eval` or a run: {where}: {first['msg']}") from None
