"""From a run directory to JSON, words and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer

from rewards.errors import BadInput
from rl.evaluation.accuracy import Accuracy
from rl.evaluation.axes import Axes, read_axes, to_json, verdicts
from rl.evaluation.thinking import Cell, Thinker, measure_thinking
from rl.report.figures import draw_figures
from rl.views import words
from tests.rl.evaluation.synthetic import cell, outcomes, write_cells, write_run


@pytest.fixture(scope="module")
def axes(tmp_path_factory: pytest.TempPathFactory) -> Axes:
    folder = write_run(tmp_path_factory.mktemp("runs") / "axes")
    write_run(folder / "seed-2", steps=(0, 10, 20), seed=2)
    return read_axes([folder])


def test_json_has_what_the_contract_names(axes: Axes) -> None:
    data = json.loads(json.dumps(to_json(axes), allow_nan=False))
    train, thinking = data["train_axis"], data["thinking_axis"]
    assert len(train["points"]) == 17
    assert train["points"][3].items() >= {"step": 30, "flops": 3e12, "tokens": 1.2e6, "seconds": 600.0}.items()
    assert train["fit"]["points"] == 9
    assert train["fit"]["base"] == train["points"][0]["accuracy"]
    low, high = train["fit"]["ceiling_ci95"]
    assert low <= 0.85 <= high
    assert train["inside"] >= 0.8
    assert 0 < train["band_at_end"] <= 0.15
    assert set(train["slope_last_third"]) == {"gain", "ci95"}
    assert train["verdict"] in ("rising", "saturated", "undecided")
    assert (train["bottleneck"] is None) == (train["verdict"] == "rising")
    assert [seed["run"] for seed in train["seeds"]] == ["seed-2"]
    assert len(thinking["points"]) == 27
    assert thinking["policy"] == "final"
    assert thinking["doublings"] == sum(d["ci95"][0] > 0 for d in thinking["doubling_list"]) >= 5
    assert thinking["doubling_list"][0]["caps"] == [16, 32]
    assert {row["k"] for row in thinking["samples"]} == {1, 2, 4, 8, 16}
    assert [row["policy"] for row in thinking["direct"]] == ["base", "step 80", "final"]
    assert thinking["saturated_at"] is None or thinking["saturated_at"] > 0


def test_words_and_verdicts_agree(axes: Axes) -> None:
    said, found = words("axes", axes).splitlines(), verdicts(axes)
    assert said[0].startswith(f"training axis: {found['train_axis']}. ")
    assert said[1].startswith("  seed-2: undecided. ")
    assert said[-1].startswith(f"thinking axis: {found['thinking_axis']}. ")
    assert verdicts(Axes(None, None)) == {"train_axis": "undecided", "thinking_axis": "undecided"}


def test_one_axis_at_hand_leaves_the_other_null(tmp_path: Path) -> None:
    rows = [cell(outcomes(mean, 100, 1, 1), cap, budget=cap) for mean, cap in ((0.2, 16), (0.5, 32))]
    axes = read_axes([write_cells(tmp_path / "e.json", rows)])
    data = to_json(axes)
    assert data["train_axis"] is None
    assert data["thinking_axis"]["doublings"] == 1
    assert len(words("axes", axes).splitlines()) == 1
    folder = write_run(tmp_path / "run", steps=(0, 10))
    for label in ("base", "budgets-step-80", "final"):
        (folder / f"eval/{label}.json").unlink()
    assert read_axes([folder]).thinking is None


def test_files_without_outcomes_still_work(tmp_path: Path) -> None:
    data = to_json(read_axes([write_run(tmp_path / "old", told=False)]))
    assert data["train_axis"]["inside"] >= 0.8
    assert data["thinking_axis"]["doublings"] >= 3
    assert all(row["derived"] is None for row in data["thinking_axis"]["samples"])


def test_an_evaluation_beside_a_run_leaves_the_runs_verdict(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=(0, 10))
    beside = write_cells(tmp_path / "patient.json", [cell(outcomes(0.5, 512, 1, 9), 90)])
    axes = read_axes([folder, beside])
    assert axes.thinking is not None
    assert [thinker.name for thinker in axes.thinking.thinkers] == ["patient", "base", "step 80", "final"]


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(BadInput, match="one point makes no axis"):
        read_axes([tmp_path])
    with pytest.raises(BadInput, match="one point makes no axis"):
        read_axes([write_cells(tmp_path / "one.json", [cell([[1, 1], [0, 1]], 9)])])


def test_pictures_hold_the_points_and_the_verdict(axes: Axes) -> None:
    assert axes.train is not None
    assert axes.thinking is not None
    (plot,) = draw_figures(Axes(axes.train, None))["train"].axes
    assert set(labels(plot)) == {"fit", "predicted from it, 95 %", "measured", "held out", "seed-2"}
    drawn = {
        part.get_label(): np.asarray(part.lines[0].get_xdata())
        for part in plot.containers
        if isinstance(part, ErrorbarContainer)
    }
    assert [*drawn["measured"], *drawn["held out"]] == list(axes.train.compute)
    (plot,) = draw_figures(Axes(None, axes.thinking))["thinking"].axes
    assert plot.get_xscale() == "log"
    assert {"base", "final", "final, answers at once", "final, pass@k, derived", "frontier of all"} <= set(labels(plot))


def test_the_frontier_never_falls_and_no_point_is_above_it() -> None:
    caps = [(16, 18.0, 0.15), (32, 26.0, 0.1), (64, 42.0, 0.2)]
    base = Thinker("base", tuple(Cell("cot", cap, tokens, share(value), {}, {}) for cap, tokens, value in caps))
    sampled = Cell("cot", None, 50.0, share(0.5), {1: 0.5, 4: 0.8}, {1: 0.5, 4: 0.55})
    axis = measure_thinking([base, Thinker("final", (sampled,))])
    (plot,) = draw_figures(Axes(None, axis))["thinking"].axes
    (line,) = (line for line in plot.lines if line.get_label() == "frontier of all")
    found = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))  # type: ignore[arg-type]
    assert found == {18.0: 0.15, 26.0: 0.15, 42.0: 0.2, 50.0: 0.5, 200.0: 0.8}


def share(value: float) -> Accuracy:
    return Accuracy(value, (value, value), 100)


def labels(plot: Any) -> list[str]:
    return list(plot.get_legend_handles_labels()[1])


def test_few_points_are_drawn_without_a_fit(tmp_path: Path) -> None:
    few = read_axes([write_run(tmp_path / "few", steps=(0, 10, 20))]).train
    assert few is not None
    (plot,) = draw_figures(Axes(few, None))["train"].axes
    assert labels(plot) == ["measured"]


def test_too_few_for_a_check_are_all_fitted(tmp_path: Path) -> None:
    some = read_axes([write_run(tmp_path / "some", steps=(0, 10, 20, 30, 40))]).train
    assert some is not None
    (plot,) = draw_figures(Axes(some, None))["train"].axes
    assert set(labels(plot)) == {"fit", "measured"}
