"""summary.json: the headline figures of a finished run, from the files that the run wrote."""

from __future__ import annotations

from typing import Any

from rewards.tasks import source_of
from rl.build import Setup
from rl.changes import describe_changes, write_changes
from rl.evaluation.axes import read_axes, summarise, verdicts
from rl.evaluator import describe, headline, read_cells, read_groups
from rl.metrics import read_metrics
from rl.provenance import command, versions
from rl.rundir import RunDir, write_json
from rollout.evaluate import paired_gain
from rollout.types import Group


def write_summary(setup: Setup, run: RunDir) -> None:
    """Write summary.json and say in two lines what came out."""
    config, rows = setup.config, read_metrics(run.metrics)
    last = rows[-1] if rows else {}
    base, final = read_cells(run, "base"), read_cells(run, "final")
    summary: dict[str, Any] = {
        "steps": last.get("step", 0),
        "seconds": last.get("total/time/step", 0.0),
        "flops": {"train": last.get("total/flops/train", 0.0), "rollout": last.get("total/flops/rollout", 0.0)},
        "tokens": {"generated": last.get("total/tokens/generated", 0)},
        "reward": {"first": rows[0]["reward/mean"], "last": last["reward/mean"]} if rows else None,
        "sampler": config.sampler,
        "world_size": 1,
        "sharding": "none",
        "threads": config.train.threads or setup.hardware.cores,
        "versions": versions(),
        "seeds": [config.seed],
        "commands": [command()],
    }
    if base and final:
        summary |= {
            "base": _figure(headline(base)),
            "final": _figure(headline(final)),
            "gain": paired_gain(*(_headline_groups(setup, run, label) for label in ("base", "final"))),
            "budgets": {name: _capped(cells) for name, cells in (("base", base), ("final", final))},
        }
        print(f"base  {describe(headline(base))}\nfinal {describe(headline(final))}")
        axes = read_axes([run.path])
        summary["verdict"] = verdicts(axes)
        print(*describe_changes(write_changes(setup, run)), *summarise(axes), sep="\n")
    write_json(run.summary, summary)
    print(f"{run.path}: {summary['steps']} steps in {summary['seconds']:.0f} s")


def _capped(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [cell for cell in cells if cell["budget"] is not None]


def _figure(cell: dict[str, Any]) -> dict[str, Any]:
    return {"pass@1": cell["pass@1"], "ci95": cell["ci95"]}


def _headline_groups(setup: Setup, run: RunDir, label: str) -> list[Group]:
    """The chains behind the headline figure: those of the first task."""
    groups = read_groups(run, label)
    first = source_of(setup.task, groups[0].problem)
    return [group for group in groups if source_of(setup.task, group.problem) == first]
