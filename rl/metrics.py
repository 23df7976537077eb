"""metrics.jsonl: one line a step, appended as it happens; a resume keeps the surviving lines byte for byte."""

import contextlib
import json
import math
import os
import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil

from rewards.errors import BadInput
from rewards.tasks.countdown import chain_traits
from rewards.types import STATUSES
from rollout.types import Chain, Group

Row = dict[str, Any]

TOTALS = ("tokens/generated", "tokens/trained", "flops/train", "flops/rollout", "time/step")  # summed under total/


class MetricsLog:
    """Appends rows and keeps the running totals."""

    def __init__(self, path: Path) -> None:
        self.path, self.last = path, (read_metrics(path) or [{}])[-1]

    def append(self, row: Row) -> Row:
        """Write one step's row with its totals, NaN and infinity as null, to disk; returns what was written."""
        self.last = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in row.items()} | {
            f"total/{k}": self.last.get(f"total/{k}", 0.0) + (row.get(k) or 0.0) for k in TOTALS
        }
        with self.path.open("a") as file:
            file.write(json.dumps(self.last, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return self.last


def read_metrics(path: Path) -> list[Row]:
    """All whole rows of a metrics file, [] where there is none; a line cut by a crash is left out. Raises BadInput."""
    try:
        return [json.loads(line) for line in _whole_lines(path)]
    except ValueError as error:
        raise BadInput(f"{path} is broken: a line is not JSON ({error}); give it as the run wrote it") from None


def truncate_metrics(path: Path, last_step: int) -> None:
    """Drop rows past `last_step` and a cut tail; the rest stays byte for byte."""
    if path.exists():
        os.truncate(path, sum(len(line) for line in _whole_lines(path) if json.loads(line)["step"] <= last_step))


def _whole_lines(path: Path) -> list[bytes]:
    data = path.read_bytes() if path.exists() else b""
    return [line for line in data.splitlines(keepends=True) if line.endswith(b"\n")]


def rollout_metrics(groups: Iterable[Group]) -> Row:
    """What a step's chains say: reward, accuracy, status counts, lengths."""
    chains = [chain for group in groups for chain in group.chains]
    scores = [chain.score for chain in chains if chain.score is not None]
    sampled = [chain.sampled_count for chain in chains]
    row: Row = {
        "reward/mean": _mean([score.value for score in scores if score.value is not None]),
        "accuracy/pass@1": _mean([float(score.correct) for score in scores if score.counts]),
        "tokens/generated": sum(sampled),
        "tokens/mean": _mean(sampled),
        "tokens/max": max(sampled, default=0),
        "chains/forced": sum(chain.finish_reason == "forced" for chain in chains),
    }
    row |= {f"samples/{status}": sum(score.status == status for score in scores) for status in STATUSES}
    return row | {f"reward/{name}": value for name, value in means([score.parts for score in scores]).items()}


def alike(group: Group) -> bool:
    """Whether a group teaches nothing: it has chains with a reward, and all the same."""
    values = [chain.score.value for chain in group.chains if chain.score and chain.score.value is not None]
    return bool(values) and max(values) - min(values) < 1e-6


def variance_metrics(groups: Sequence[Group]) -> Row:
    """Groups that are alike, by what they were and by difficulty, beside the others' difficulty and length: what leaves
    with them is seen, such as a bias towards problems that are easy or short."""
    sides = {"alike": [g for g in groups if alike(g)], "mixed": [g for g in groups if not alike(g)]}
    row: Row = {f"groups/alike/difficulty_{d:g}": n for d, n in
                sorted(Counter(round(g.problem.difficulty, 1) for g in sides["alike"]).items())}  # fmt: skip
    for name, side in sides.items():
        chains = [chain for group in side for chain in group.chains]
        row[f"groups/{name}/difficulty"] = _mean([group.problem.difficulty for group in side])
        row[f"groups/{name}/tokens"] = _mean([chain.sampled_count for chain in chains])
        row[f"groups/{name}/pass@1"] = _mean([float(c.score.correct) for c in chains if c.score and c.score.counts])
    return row | {"groups/all": len(groups), "groups/alike": len(sides["alike"])}


def search_metrics(groups: Iterable[Group], text_of: Callable[[Chain], str]) -> Row:
    """chain/NAME: the mean of every trait that the task can tell of its chains (rewards/tasks/countdown.py)."""
    traits = [chain_traits(group.problem, text_of(chain)) for group in groups for chain in group.chains]
    return {f"chain/{name}": value for name, value in means(traits).items()}


def memory_metrics() -> Row:
    """GiB: resident memory of this process, the most it ever had, and that of all it started (server, workers)."""
    learner, started = psutil.Process(), 0
    for process in learner.children(recursive=True):
        with contextlib.suppress(psutil.Error):  # one may end meanwhile
            started += process.memory_info().rss
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if sys.platform == "linux" else 1)
    now = learner.memory_info().rss
    sizes = {"learner": now, "peak": max(now, peak), "server": started}  # the kernel's peak lags a little
    return {f"memory/{name}": size / 2**30 for name, size in sizes.items()}


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each name over the rows that have it, names in order."""
    names = sorted({name for row in rows for name in row})
    return {name: _mean([row[name] for row in rows if name in row]) for name in names}


def _mean(values: list[float] | list[int]) -> float:
    return sum(values) / len(values) if values else math.nan
