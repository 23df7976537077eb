"""docs/algorithms.md can't drift: its table of presets is rl/presets.yaml, and every formula by name has its row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rl.advantages import ADVANTAGES
from rl.correction import CORRECTIONS
from rl.kl import ESTIMATORS
from rl.losses import AGGREGATIONS, LOSSES
from rl.presets import ROWS

PAGE = (Path(__file__).parents[2] / "docs/algorithms.md").read_text()


def section(title: str) -> list[list[str]]:
    """The cells of a section's table, below its head."""
    body = PAGE.split(f"\n## {title}", 1)[1].split("\n## ", 1)[0].split("|---", 1)[1].splitlines()[1:]
    return [[cell.strip() for cell in line[1:].split("|")] for line in body if line.startswith("|")]


def written(value: object) -> str:
    return {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)


@pytest.mark.parametrize("name", ROWS)
def test_a_preset_is_what_its_row_says(name: str) -> None:
    (row,) = [row for row in section("Presets (") if row[0] == f"`{name}`"]
    found = ROWS["grpo"] | ROWS[name]
    loss, low, high = found["loss"], found["clip_low"], found["clip_high"]
    bounds = {"reinforce": "", "sapo": "", "cispo": f" any / {high:g}"}.get(loss, f" {low:g} / {high:g}")
    shown = {"loss", "advantage", "aggregation", "clip_low", "clip_high"}
    besides = [f"`{key}: {written(value)}`" for key, value in ROWS[name].items() if key not in shown]
    want = [f"`{loss}`{bounds}", f"`{found['advantage']}`", f"`{found['aggregation']}`"]
    assert row[1:4] == want
    assert row[4] == ("" if name == "grpo" else ", ".join(besides))
    assert row[5]


@pytest.mark.parametrize(
    ("title", "names"),
    [
        ("Presets (", ROWS), ("Advantages (", ADVANTAGES), ("Loss of a token", LOSSES),
        ("From tokens to a number", AGGREGATIONS), ("KL to a reference", ESTIMATORS), ("Correction of", CORRECTIONS),
    ],
)  # fmt: skip
def test_every_name_has_its_row_and_no_other(title: str, names: dict[str, object]) -> None:
    assert [row[0].strip("`") for row in section(title)] == list(names)


def test_a_mode_is_no_name_that_is_not() -> None:
    """Keys of the objective that the page names exist."""
    named = set(re.findall(r"`objective\.(\w+)", PAGE))
    assert named <= set(ROWS["grpo"])
