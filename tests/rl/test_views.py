"""What commands say in words: the table of an evaluation."""

from __future__ import annotations

from typing import Any

from rl.views import words

CELL: dict[str, Any] = {
    "task": "countdown", "prompt": "cot", "budget": 64, "pass@1": 0.5, "ci95": [0.25, 0.75],
    "pass@k": {"1": 0.5, "4": 0.7}, "tokens_mean": 55.4, "truncated": 0.1, "unparsed": 0.0, "forced_closed": 1.0,
}  # fmt: skip


def test_an_evaluation_is_a_table_whose_columns_line_up() -> None:
    lines = words("evaluation", [CELL, CELL | {"budget": None, "task": "arithmetic?operations=3"}]).splitlines()
    assert lines[1].split() == (
        [
            "countdown",
            "cot",
            "64",
            "0.500",
            "0.250",
            "to",
            "0.750",
            "1:",
            "0.500",
            "4:",
            "0.700",
            "55",
            "10%",
            "0%",
            "100%",
        ]
    )
    assert "no cap" in lines[2]
    assert len({line.index("cot") for line in lines[1:]}) == 1
    assert lines[0].index("truncated") == lines[1].index("10%") == lines[2].index("10%")
