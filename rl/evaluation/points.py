"""Measured points of both axes, read from run directories and evaluation files; nothing is fitted here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards.errors import BadInput
from rl.metrics import Row, read_metrics
from rl.rundir import RunDir
from rollout.evaluate import pass_at_1, wilson

Array = NDArray[np.float64]

COMPUTE = {
    "flops": ("total/flops/train", "total/flops/rollout"),
    "tokens": ("total/tokens/generated",),
    "steps": ("step",),
    "seconds": ("total/time/step",),
}
"""What the training axis may count, and the metrics of a step that add up to it."""

CELL_KEYS = ("pass@1", "ci95", "n_problems", "tokens_mean", "budget", "prompt")
"""What every cell must have."""


@dataclass(frozen=True)
class Accuracy:
    """pass@1 of one evaluation. Points with as many problems in `correct` hold the same ones, in the same order."""

    value: float
    ci95: tuple[float, float]
    problems: int
    correct: Array | None = None  # [P] correct samples of a problem; None where the file does not tell
    judged: Array | None = None  # [P] its judged samples

    @property
    def variance(self) -> float:
        """Of the measured mean. Never 0: the share is drawn towards 1/2 by two successes in four (Agresti-Coull)."""
        share = (self.value * self.problems + 2) / (self.problems + 4)
        if self.correct is None or self.judged is None:
            return share * (1 - share) / self.problems
        rates = self.correct[self.judged > 0] / self.judged[self.judged > 0]
        spread = float(rates.var(ddof=1)) / len(rates) if len(rates) > 1 else 0.0
        return max(spread, share * (1 - share) / float(self.judged.sum()))

    @property
    def size(self) -> float:
        """Problems with one sample each that would measure as exactly."""
        share = (self.value * self.problems + 2) / (self.problems + 4)
        return share * (1 - share) / self.variance


@dataclass(frozen=True)
class TrainPoint:
    """A checkpoint on val."""

    step: int
    compute: dict[str, float]  # cumulative, by the names of COMPUTE
    accuracy: Accuracy


@dataclass(frozen=True)
class Cell:
    """One prompt at one thinking cap, all tasks of the evaluation together."""

    prompt: str
    budget: int | None  # None = no cap
    tokens: float  # really spent, mean of a chain
    accuracy: Accuracy
    pass_at: dict[int, float]  # unbiased
    majority_at: dict[int, float]


@dataclass(frozen=True)
class Policy:
    """Weights whose thinking was measured."""

    name: str
    cells: tuple[Cell, ...]

    def caps(self) -> list[Cell]:
        """Chain cells, the smallest cap first and no cap last."""
        chains = [cell for cell in self.cells if cell.prompt != "direct"]
        prompt = "cot" if any(cell.prompt == "cot" for cell in chains) else next((c.prompt for c in chains), "")
        return sorted(
            (cell for cell in chains if cell.prompt == prompt),
            key=lambda cell: math.inf if cell.budget is None else cell.budget,
        )


@dataclass(frozen=True)
class RunPoints:
    """What one run directory (or a handful of evaluation files) holds."""

    name: str
    train: tuple[TrainPoint, ...] = ()
    policies: tuple[Policy, ...] = ()
    rows: tuple[Row, ...] = field(default=(), repr=False)  # metrics.jsonl
    config: dict[str, Any] = field(default_factory=dict, repr=False)  # config.yaml as it stands


def read_sources(paths: Sequence[Path]) -> list[RunPoints]:
    """Runs in the order given, each followed by the runs in its sub-directories (other seeds); evaluation files last.

    Raises BadInput where a path is neither, or nothing in it can be placed on an axis.
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
    of_run = {path: path.resolve().parents[1] for path in files if _in_run(path)}
    for folder in dict.fromkeys(of_run.values()):
        runs.append(read_run(folder, [path.stem for path in files if of_run.get(path) == folder]))
    loose = tuple(_policy(path.stem, read_cells(path)) for path in files if path not in of_run)
    runs += [RunPoints("evaluations", policies=loose)] if loose else []
    if not any(run.train or run.policies for run in runs):
        raise BadInput(
            f"{' '.join(map(str, paths))}: no evaluation in it; set eval.every in the run, or give eval files"
        )
    return runs


def read_run(path: Path, labels: Sequence[str] | None = None) -> RunPoints:
    """The points of one run directory, of `labels` alone where given; `eval/` may be absent. Raises BadInput."""
    run = RunDir(path)
    rows = {row["step"]: row for row in _metrics(run.metrics)}
    files = {file.stem: file for file in sorted(run.eval.glob("*.json")) if labels is None or file.stem in labels}
    steps = sorted(int(label[5:]) for label in files if re.fullmatch(r"step-\d+", label))
    budgets = sorted(int(label[13:]) for label in files if re.fullmatch(r"budgets-step-\d+", label))
    train = [
        TrainPoint(step, _compute(rows, step, run), _pooled([cell for cell in cells if cell["budget"] == cap]))
        for step in steps
        for cells in [_chains(read_cells(files[f"step-{step}"]))]
        for cap in [_largest(cells)]
    ]
    names = {"base": "base"} | {f"budgets-step-{n}": f"step {n}" for n in budgets} | {"final": "final"}
    policies = [_policy(name, read_cells(files[label])) for label, name in names.items() if label in files]
    return RunPoints(path.resolve().name, tuple(train), tuple(policies), tuple(rows.values()), _config(run))


def read_cells(path: Path) -> list[dict[str, Any]]:
    """The cells of an evaluation file, or BadInput."""
    try:
        cells: list[dict[str, Any]] = json.loads(path.read_text())["cells"]
        missing = {key for cell in cells for key in CELL_KEYS if key not in cell}
    except (OSError, ValueError, KeyError, TypeError):
        raise BadInput(
            f"{path} is no evaluation file; give one that `ponder eval --out` or a run's eval/ holds"
        ) from None
    if missing or not cells:
        raise BadInput(f"{path} has no cells with {', '.join(sorted(missing)) or 'figures'}; evaluate again")
    return cells


def _run_folders(path: Path) -> list[Path]:
    seeds = sorted(folder for folder in path.iterdir() if (folder / "metrics.jsonl").is_file())
    if not (path / "metrics.jsonl").is_file() and not (path / "eval").is_dir():
        if not seeds:
            raise BadInput(f"{path} is not a run directory (no metrics.jsonl and no eval/ in it)")
        return seeds
    return [path, *seeds]


def _in_run(path: Path) -> bool:
    """Whether an evaluation file is one of a run's own."""
    folder = path.resolve().parent
    return folder.name == "eval" and (folder.parent / "metrics.jsonl").is_file()


def _metrics(path: Path) -> list[Row]:
    try:
        return read_metrics(path)
    except ValueError as error:
        raise BadInput(f"{path} has a line that is not JSON ({error}); give the file as the run wrote it") from None


def _config(run: RunDir) -> dict[str, Any]:
    from rl.config import read_yaml

    return read_yaml(run.config) if run.config.is_file() else {}


def _compute(rows: dict[int, Row], step: int, run: RunDir) -> dict[str, float]:
    if step == 0:
        return dict.fromkeys(COMPUTE, 0.0)
    if step not in rows:
        raise BadInput(
            f"{run.eval}/step-{step}.json has no line for step {step} in {run.metrics}; they are of two runs"
        )
    return {name: float(sum(rows[step].get(key) or 0.0 for key in keys)) for name, keys in COMPUTE.items()}


def _policy(name: str, cells: list[dict[str, Any]]) -> Policy:
    """One Cell for each prompt and cap. Of several temperatures, the one with most cells (ties: the first) is taken."""
    temperatures = [cell.get("temperature") for cell in cells]
    usual = max(dict.fromkeys(temperatures), key=temperatures.count)
    groups: dict[tuple[str, int | None], list[dict[str, Any]]] = {}
    for cell in cells:
        if cell.get("temperature") == usual:
            groups.setdefault((cell["prompt"], cell["budget"]), []).append(cell)
    return Policy(name, tuple(_cell(prompt, budget, group) for (prompt, budget), group in groups.items()))


def _cell(prompt: str, budget: int | None, group: list[dict[str, Any]]) -> Cell:
    samples = [cell.get("n_samples", cell["n_problems"]) for cell in group]
    tokens = float(np.average([cell["tokens_mean"] for cell in group], weights=samples))
    return Cell(prompt, budget, tokens, _pooled(group), _by_k(group, "pass@k"), _by_k(group, "majority@k"))


def _by_k(group: list[dict[str, Any]], key: str) -> dict[int, float]:
    ks = set.intersection(*(set(cell.get(key, {})) for cell in group))
    weights = [cell["n_problems"] for cell in group]
    return {k: float(np.average([cell[key][str(k)] for cell in group], weights=weights)) for k in sorted(map(int, ks))}


def _pooled(group: list[dict[str, Any]]) -> Accuracy:
    """Cells of several tasks as one evaluation: the mean over all their problems."""
    problems = sum(cell["n_problems"] for cell in group)
    value = sum(cell["pass@1"] * cell["n_problems"] for cell in group) / problems
    pairs = [pair for cell in group for pair in cell.get("outcomes") or []]
    told = all(cell.get("outcomes") for cell in group)
    correct, judged = np.array(pairs, dtype=float).T if told else (None, None)
    if len(group) == 1:
        low, high = group[0]["ci95"]
    elif told:
        low, high = pass_at_1([[True] * c + [False] * (j - c) for c, j in pairs])["ci95"]
    else:
        low, high = wilson(value, problems)
    return Accuracy(value, (low, high), problems, correct, judged)


def _chains(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [cell for cell in cells if cell["prompt"] != "direct"] or cells


def _largest(cells: Iterable[dict[str, Any]]) -> int | None:
    """The largest cap, None (no cap) above all."""
    budgets = [cell["budget"] for cell in cells]
    return None if None in budgets else max(budgets)
