"""Run directories whose curves are known: problems of fixed hardness, solved more as compute and caps grow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from rl.evaluation.accuracy import Accuracy
from rl.evaluation.training import Fit

CURVE = Fit(base=0.25, ceiling=0.85, midpoint=4e12, exponent=1.3)
CAPS = (0, 16, 32, 64, 128, 256, 512, 1024)


def outcomes(mean: float, problems: int, samples: int, seed: int, hardness_seed: int = 0) -> list[list[int]]:
    """[[correct, judged], …] of problems whose rates spread around `mean`; hardness is `hardness_seed`'s, for pairs."""
    hard = np.random.default_rng(hardness_seed).normal(0, 1.5, problems)
    low, high = -20.0, 20.0
    for _ in range(60):  # the shift whose rates have this mean
        shift = (low + high) / 2
        low, high = (shift, high) if expit(shift - hard).mean() < mean else (low, shift)
    correct = np.random.default_rng(seed).binomial(samples, expit(shift - hard))
    return [[int(c), samples] for c in correct]


def accuracy(pairs: Sequence[Sequence[int]] | None, value: float | None = None, problems: int = 0) -> Accuracy:
    """From outcomes, or from a bare share of `problems`."""
    if pairs is None:
        assert value is not None
        return Accuracy(value, (value, value), problems)
    outcomes = np.array(pairs, dtype=float)
    mean = float((outcomes[:, 0] / outcomes[:, 1]).mean())
    return Accuracy(mean, (mean, mean), len(pairs), outcomes)


def cell(pairs: list[list[int]], tokens: float, told: bool = True, **fields: Any) -> dict[str, Any]:
    """An evaluation cell with these outcomes, which it keeps to itself unless `told`."""
    correct, judged = np.array(pairs, dtype=float).T
    mean = float((correct / judged).mean())
    half = 2 * (mean * (1 - mean) / len(pairs)) ** 0.5
    samples = int(judged[0])
    figures = {
        "model": "m", "task": "countdown", "split": "test", "prompt": "cot", "budget": None, "temperature": 1.0,
        "k": samples, "n_problems": len(pairs), "n_samples": int(judged.sum()), "pass@1": mean,
        "ci95": [max(0.0, mean - half), min(1.0, mean + half)], "tokens_mean": tokens,
        "pass@k": {"1": mean, str(samples): float((correct > 0).mean())},
        "majority@k": {"1": mean, str(samples): float((correct * 2 > judged).mean())},
    }  # fmt: skip
    return figures | ({"outcomes": pairs} if told else {}) | fields


def write_run(
    folder: Path, steps: Sequence[int] = tuple(range(0, 170, 10)), curve: Fit = CURVE, told: bool = True, seed: int = 1
) -> Path:
    """A slim run directory: 1e11 FLOPs a step, val points on `curve`, three policies at CAPS on test."""
    (folder / "eval").mkdir(parents=True)
    rows = [_row(step) for step in range(1, max(steps) + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text("rollout: {problems: 32}\nmodel: {dtype: float32}\n")
    for step in steps:
        mean = float(curve.at(np.array([step * 1e11]))[0])
        write_cells(folder / f"eval/step-{step}.json", [cell(outcomes(mean, 256, 1, seed * 1000 + step), 100, told)])
    for label, ceiling, spent in (("base", 0.3, 60), ("budgets-step-80", 0.65, 150), ("final", 0.85, 400)):
        cells = [_capped(cap, ceiling, spent, told) for cap in (*CAPS, None)]
        direct = cell(outcomes(0.1, 512, 4, 5), 8, told, prompt="direct")
        write_cells(folder / f"eval/{label}.json", [*cells, direct])
    return folder


def write_cells(path: Path, cells: list[dict[str, Any]]) -> Path:
    """An evaluation file."""
    path.write_text(json.dumps({"cells": cells, "versions": {}, "command": "synthetic"}))
    return path


def _capped(cap: int | None, ceiling: float, spent: float, told: bool) -> dict[str, Any]:
    length = 4096 if cap is None else cap
    mean = 0.08 + (ceiling - 0.08) * length / (length + spent / 3)
    tokens = 6 + spent * (1 - np.exp(-length / spent))
    return cell(outcomes(mean, 512, 4, int(length + spent)), float(tokens), told, budget=cap)


def _row(step: int) -> dict[str, Any]:
    return {
        "step": step, "total/flops/train": 8e10 * step, "total/flops/rollout": 2e10 * step,
        "total/tokens/generated": 40_000 * step, "total/time/step": 20.0 * step, "entropy": 0.4 - 0.001 * step,
        "mismatch_kl/fresh": 4e-14, "samples/ok": 150, "samples/wrong": 66, "samples/truncated": 40,
        "groups/no_variance": 5, "chain/repeated": 0.24,
    }  # fmt: skip
