"""summary.json: the headline figures of a finished run, from the files that the run wrote."""

from __future__ import annotations

from typing import Any

from rl.build import Setup
from rl.evaluator import describe, headline, read_cells
from rl.metrics import read_metrics
from rl.provenance import command, versions
from rl.rundir import RunDir, write_json
from rollout.evaluate import paired_gain
from rollout.store import read
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
            "gain": paired_gain(_groups(run, "base"), _groups(run, "final")),
            "budgets": {"base": base, "final": final},
        }
        print(f"base  {describe(headline(base))}\nfinal {describe(headline(final))}")
    write_json(run.summary, summary)
    print(f"{run.path}: {summary['steps']} steps in {summary['seconds']:.0f} s")


def _figure(cell: dict[str, Any]) -> dict[str, Any]:
    return {"pass@1": cell["pass@1"], "ci95": cell["ci95"]}


def _groups(run: RunDir, label: str) -> list[Group]:
    return [group for _, groups in read(run.eval / f"{label}.samples.jsonl.zst") for group in groups]
