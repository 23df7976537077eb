"""How fast the `math` reward judges, against calling math-verify directly on the same pairs.

    python benchmarks/verifiers.py --quick --json verifiers.json

Both sides run in this process, get the same response (the answer in a box) and take turns, round by round. Pairs of
reference and answer are those of data/math_pairs.tsv (every plain one, and symbolic ones for 30 % of the whole), shown
apart 2,000 plain numbers. math-verify is called as its README says, gold and response parsed, then verified. A speed-up
is the ratio of items per second; percentiles are over single items of all rounds. Bounds: 3 in all, 1 on symbolic
pairs, and a p99 no higher than math-verify's.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from rewards.math import math
from rewards.types import Problem
from rl.rundir import versions, write_json
from rollout.server.hardware import probe

PAIRS = Path(__file__).parent / "data/math_pairs.tsv"
SYMBOLIC_SHARE = 0.3
Pair = tuple[str, str]  # reference, answer


def load_pairs() -> dict[str, list[Pair]]:
    """Pairs by kind: plain, symbolic."""
    with PAIRS.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return {kind: [(r["reference"], r["answer"]) for r in rows if r["kind"] == kind] for kind in ("plain", "symbolic")}


def numbers(count: int) -> list[Pair]:
    """Integers, decimals and fractions against themselves written otherwise, or a near miss."""
    rng, pairs = random.Random(0), []
    for k in range(count):
        n, d = rng.randint(-10_000, 10_000), rng.choice([1, 2, 4, 5, 8, 10, 20, 25])
        wrong = n + rng.choice([-1, 1, 10]) if k % 2 else n
        forms = [f"{Fraction(wrong, d)}", f"{wrong / d}", rf"\frac{{{wrong}}}{{{d}}}"]
        pairs.append((str(Fraction(n, d)), rng.choice(forms)))
    return pairs


def ours(reference: str, response: str) -> bool:
    """The `math` reward's verdict."""
    return math(response, Problem("", "", "", reference, "")).correct


def theirs(reference: str, response: str) -> bool:
    """math-verify's verdict."""
    from math_verify import parse, verify

    return bool(verify(parse(f"${reference}$"), parse(response)))


def seconds(judge: Callable[[str, str], bool], pairs: list[Pair]) -> list[float]:
    """Seconds of each pair."""
    times = []
    for reference, answer in pairs:
        response = rf"The final answer is $\boxed{{{answer}}}$."
        began = time.perf_counter()
        judge(reference, response)
        times.append(time.perf_counter() - began)
    return times


def measure(quick: bool) -> dict[str, Any]:
    """Both sides on every set, alternating; figures and raw times."""
    pairs = load_pairs()
    plain, symbolic = (kind[:: 4 if quick else 1] for kind in (pairs["plain"], pairs["symbolic"]))
    wanted = round(len(plain) * SYMBOLIC_SHARE / (1 - SYMBOLIC_SHARE))
    symbolic = [symbolic[k * len(symbolic) // wanted] for k in range(wanted)]
    sets = {"plain": plain, "symbolic": symbolic, "numeric": numbers(200 if quick else 2000)}
    sides = {"ours": ours, "math_verify": theirs}
    for judge in sides.values():
        seconds(judge, [("2", "3"), ("x", r"\sqrt{x^2}")])  # imports
    raw: dict[str, dict[str, list[list[float]]]] = {kind: {side: [] for side in sides} for kind in sets}
    for number in range(1 if quick else 3):
        for kind, members in sets.items():
            for side, judge in sides.items():
                raw[kind][side].append(seconds(judge, members))
            print(number, kind, {side: f"{sum(raw[kind][side][-1]):.2f} s" for side in sides}, file=sys.stderr)
    return summarise(raw) | {"pairs": {kind: len(members) for kind, members in sets.items()}, "raw_s": raw}


def summarise(raw: dict[str, dict[str, list[list[float]]]]) -> dict[str, Any]:
    """The figures out of the seconds by set, side, round and item."""
    times = {kind: {side: np.array(raw[kind][side]).ravel() for side in raw[kind]} for kind in raw}
    times["all"] = {side: np.concatenate([times["plain"][side], times["symbolic"][side]]) for side in times["plain"]}
    speedup = {kind: float(found["math_verify"].sum() / found["ours"].sum()) for kind, found in times.items()}
    mine, other = (1000 * times["all"][side] for side in ("ours", "math_verify"))
    return {
        "speedup_vs_math_verify": speedup["all"],
        "speedup_symbolic": speedup["symbolic"],
        "speedup_plain_numeric": speedup["numeric"],
        "p50_ms": float(np.percentile(mine, 50)),
        "p99_ms": float(np.percentile(mine, 99)),
        "p50_math_verify_ms": float(np.percentile(other, 50)),
        "p99_math_verify_ms": float(np.percentile(other, 99)),
        "items_per_s": {kind: {side: t.size / float(t.sum()) for side, t in by.items()} for kind, by in times.items()},
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the pairs, 200 numbers and one round")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    found = measure(args.quick) | {"quick": args.quick, "load": os.getloadavg()}
    if args.json is not None:
        write_json(args.json, found | {"machine": asdict(probe()), "versions": versions()})
    print(json.dumps({name: value for name, value in found.items() if name != "raw_s"}))


if __name__ == "__main__":
    main()
