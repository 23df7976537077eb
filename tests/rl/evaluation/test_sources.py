"""Run directories and evaluation files -> points; what is broken is named in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rewards.errors import BadInput
from rl.evaluation.axes import read_axes, read_cells, read_run, read_thinker
from tests.rl.evaluation.synthetic import CAPS, cell, outcomes, write_cells, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "axes", steps=(0, 10, 20))


def test_points_of_both_axes(run: Path) -> None:
    points = read_run(run)
    assert points.name == "axes"
    assert [point.step for point in points.points] == [0, 10, 20]
    assert points.points[0].compute == {"flops": 0, "tokens": 0, "steps": 0, "seconds": 0}
    assert points.points[2].compute == {"flops": 2e12, "tokens": 800_000, "steps": 20, "seconds": 400}
    policies = points.thinkers
    assert [policy.name for policy in policies] == ["base", "step 80", "final"]
    final = policies[-1]
    assert [c.budget for c in final.caps] == [*CAPS, None]
    assert final.direct is not None
    assert final.longest.budget is None
    assert final.longest.accuracy.outcomes is not None
    assert len(final.longest.accuracy.outcomes) == 512


def test_seeds_are_the_runs_below(run: Path, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "axes", steps=(0, 10))
    for seed in ("seed-3", "seed-2"):
        write_run(folder / seed, steps=(0, 10))
    assert names_of(folder, run) == ["axes", "seed-2", "seed-3", "axes"]
    alone = tmp_path / "several"
    alone.mkdir()
    (folder / "seed-2").rename(alone / "one")
    assert names_of(alone) == ["one"]


def names_of(*paths: Path) -> list[str]:
    axis = read_axes(paths).train
    assert axis is not None
    return [axis.name, *(seed.name for seed in axis.seeds)]


def test_files_are_policies_beside_the_runs_own(run: Path, tmp_path: Path) -> None:
    other = write_cells(tmp_path / "longer.json", [cell(outcomes(0.5, 20, 1, 1), 9)])
    train, thinking = read_axes([run, other])
    assert train is not None
    assert train.seeds == ()
    assert thinking is not None
    assert [policy.name for policy in thinking.thinkers] == ["longer", "base", "step 80", "final"]


def test_cells_of_several_tasks_are_one(tmp_path: Path) -> None:
    easy, hard = outcomes(0.8, 100, 2, 1), outcomes(0.2, 300, 2, 2)
    cells = [cell(easy, 10, task="three"), cell(hard, 30, task="four")]
    for told in (True, False):
        rows = [row if told else {k: v for k, v in row.items() if k != "outcomes"} for row in cells]
        path = write_cells(tmp_path / "mixed.json", rows)
        (mixed,) = read_thinker("mixed", path).cells
        expected = (sum(c for c, _ in easy) + sum(c for c, _ in hard)) / 800
        assert mixed.accuracy.value == pytest.approx(expected)
        assert mixed.accuracy.problems == 400
        assert mixed.accuracy.ci95[0] < expected < mixed.accuracy.ci95[1]
        assert mixed.tokens == pytest.approx(25)
        assert mixed.pass_at[1] == pytest.approx(expected)
        assert (mixed.accuracy.outcomes is not None) == told


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "Invalid JSON"),
        ("[]", "the file"),
        ('{"cells": []}', "cells"),
        ('{"cells": [{"prompt": "cot"}]}', "cells.0.budget"),
        (json.dumps({"cells": [cell([[1, 1]], 9) | {"pass@1": 1.5}]}), "cells.0.pass@1"),
        (json.dumps({"cells": [cell([[1, 1]], 9) | {"n_problems": 0}]}), "cells.0.n_problems"),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "e.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"e\.json") as refused:
        read_cells(path)
    assert named in str(refused.value)


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no run directory"):
        read_axes([tmp_path / "nowhere"])
    with pytest.raises(BadInput, match="no run directory"):
        read_axes([tmp_path])
    (tmp_path / "metrics.jsonl").write_text("{]\n")
    with pytest.raises(BadInput, match="not JSON"):
        read_axes([tmp_path])


def test_an_evaluation_without_its_step_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", steps=(0, 10))
    write_cells(folder / "eval/step-40.json", [cell([[1, 1]], 9)])
    with pytest.raises(BadInput, match=r"step-40\.json: metrics\.jsonl has no step 40"):
        read_run(folder)
