"""Evaluation inside a run: the same sampler, prompts and verifiers as training, on val and test."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rewards.pool import RewardPool
from rewards.tasks import source_of
from rewards.types import Split
from rl.build import Setup
from rl.patience import patient_cells, patient_groups
from rl.provenance import result_file
from rl.rundir import RunDir, write_json
from rollout.evaluate import evaluate
from rollout.store import SampleStore, read
from rollout.types import Group, Sampler


class Evaluator:
    """Evaluates a run's policy; each evaluation keeps its cells (eval/LABEL.json) and every chain."""

    def __init__(self, setup: Setup, run: RunDir, pool: RewardPool) -> None:
        self.setup, self.run, self.pool = setup, run, pool

    async def run_once(
        self,
        label: str,
        split: Split,
        budgets: Sequence[int],
        sampler: Sampler,
        on_progress: Callable[[int, int], None] | None = None,
        samples: int | None = None,
    ) -> str | None:
        """Evaluate and store under `label`; a line that says what was found, None where it was done before.

        `samples` chains a problem, null = eval.samples. With budgets, answers without thinking are measured beside.
        """
        if (self.run.eval / f"{label}.json").exists():
            return None
        config = self.setup.config
        measure = partial(
            evaluate,
            self.setup.eval_problems(split),
            sampler=sampler,
            template=self.setup.template,
            pool=self.pool,
            spec_of=self.setup.spec_of,
            task_of=partial(source_of, self.setup.task),
            model=label,
            split=split,
            samples=samples or config.eval.samples,
            temperature=config.rollout.temperature,
            max_tokens=config.rollout.max_tokens,
            answer=config.budget.answer,
            seed=config.seed,
            on_progress=on_progress,
        )
        cells, groups = await measure(budgets=[*budgets, None] if budgets else [config.budget.think])
        if budgets:
            cells += (await measure(style="direct"))[0]
        return self._store(label, split, cells, groups)

    async def run_patient(self, sampler: Sampler) -> str | None:
        """Store under base-patient what the chains of `base` become when they may not give up."""
        if (self.run.eval / "base-patient.json").exists():
            return None
        groups = await patient_groups(self.setup, read_groups(self.run, "base"), sampler, self.pool)
        return self._store("base-patient", "test", patient_cells(self.setup, groups, "base-patient"), groups)

    def _store(self, label: str, split: Split, cells: list[dict[str, Any]], groups: list[Group]) -> str:
        self.run.eval.mkdir(parents=True, exist_ok=True)
        samples = samples_path(self.run, label)
        samples.unlink(missing_ok=True)  # of an evaluation that was killed
        SampleStore(samples).append(0, groups)
        write_json(self.run.eval / f"{label}.json", result_file(cells))
        return f"{label} on {split}: {describe(headline(cells))}"


def clear_evaluations(run: RunDir, step: int, finished: bool) -> None:
    """Remove evaluations of weights past `step`, and unless the run is `finished` its final one and its summary."""
    for path in run.eval.glob("*.json*"):
        label = path.name.partition(".")[0]
        number = label.removeprefix("budgets-").removeprefix("step-")
        if (number.isdigit() and int(number) > step) or (label == "final" and not finished):
            path.unlink()
    if not finished:
        run.summary.unlink(missing_ok=True)


def headline(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The cell that stands for an evaluation: the first task without a cap on thinking."""
    return next((cell for cell in cells if cell["budget"] is None), cells[-1])


def describe(cell: dict[str, Any]) -> str:
    """pass@1 with its interval, in words."""
    low, high = cell["ci95"]
    return f"pass@1 {cell['pass@1']:.3f} [{low:.3f}, {high:.3f}] on {cell['n_problems']} problems"


def samples_path(run: RunDir, label: str) -> Path:
    """Where the chains of one evaluation of a run are kept."""
    return run.eval / f"{label}.samples.jsonl.zst"


def read_groups(run: RunDir, label: str) -> list[Group]:
    """The chains of one evaluation of a run, at its largest budget."""
    return [group for _, groups in read(samples_path(run, label)) for group in groups]


def read_cells(run: RunDir, label: str) -> list[dict[str, Any]] | None:
    """The cells of one evaluation of a run, None where it was not made."""
    path = run.eval / f"{label}.json"
    if not path.exists():
        return None
    cells: list[dict[str, Any]] = json.loads(path.read_text())["cells"]
    return cells
