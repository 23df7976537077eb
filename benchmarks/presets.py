"""Every preset on the demo's task: one table and one picture of reward against generated tokens.

    python benchmarks/presets.py --out docs/results/presets            # `make presets`; finished runs are kept
    python benchmarks/presets.py --only grpo,ppo --quick --json p.json

Each preset trains `configs/presets.yaml` with `algorithm=NAME`, all on one vLLM server. A preset holds where the mean
of its last five rewards is at least that of its first five, entropy stays above 0.05 and no optimizer step was skipped.
Those of --compare (grpo and ppo) run with three seeds and are evaluated before and after, 512 problems x 2 samples.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from rl.metrics import read_metrics
from rl.rundir import versions, write_json

PRESETS = Path("rl/presets.yaml")
MARGIN = 0.10  # how much lower PPO's mean accuracy may be than GRPO's
OWN = {  # what a preset needs beside its name; all others share the file's settings
    "ppo": ["critic.learning_rate=1e-3"],
    "rloo": ["train.learning_rate=1e-4"],  # sums over tokens, without a ratio: at 3e-4 chains grow into the cap
}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="configs/presets.yaml")
    parser.add_argument("--only", default=",".join(yaml.safe_load(PRESETS.read_text())), help="presets, by comma")
    parser.add_argument("--compare", default="grpo,ppo", help="presets that get three seeds and evaluations")
    parser.add_argument("--runs", type=Path, default=Path("runs/presets"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, help="where table, picture and metrics go")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="three steps, one seed, no evaluation")
    return parser.parse_args()


@contextlib.contextmanager
def served(config: str, runs: Path) -> Iterator[str]:
    """One vLLM server for all runs; its URL. The key is in the environment, where `ponder train` looks for it."""
    os.environ.setdefault("PONDER_API_KEY", secrets.token_urlsafe(24))
    shutil.rmtree(runs / "server", ignore_errors=True)
    command = [sys.executable, "-m", "rl.cli", "serve", config, "run.name=server", f"run.dir={runs}"]
    runs.mkdir(parents=True, exist_ok=True)
    with (runs / "serve.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        while "serving at" not in (runs / "serve.log").read_text():
            if process.poll() is not None:
                sys.exit(f"the server did not start: {(runs / 'serve.log').read_text()[-300:]}")
            time.sleep(0.5)
        yield json.loads((runs / "server" / "server.json").read_text())[0]["url"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def train(name: str, seed: int, url: str, given: argparse.Namespace) -> Path:
    """One run, unless it is done; its directory."""
    run = given.runs / f"{name.replace('+', 'p')}-{seed}"
    compared = name in given.compare.split(",") and not given.quick
    settings = [f"algorithm={name}", f"seed={seed}", f"run.name={run.name}", f"run.dir={given.runs}"]
    settings += [f'rollout.servers=["{url}"]', f"eval.every={1000 if compared else 0}", *OWN.get(name, [])]
    settings += ["train.steps=3"] if given.quick else []
    if not (run / "summary.json").exists():
        start = time.monotonic()
        log = given.runs / f"{run.name}.log"
        with log.open("w") as out:
            command = [sys.executable, "-m", "rl.cli", "train", given.config, *settings, "--overwrite"]
            code = subprocess.run(command, stdout=out, stderr=out).returncode
        print(f"{run.name}: exit {code}, {time.monotonic() - start:.0f} s", flush=True)
        if code:
            sys.exit(f"{run.name} failed: {log.read_text().splitlines()[-1]}")
    return run


def judge(run: Path) -> dict[str, Any]:
    """What a run's metrics came to."""
    rows = read_metrics(run / "metrics.jsonl")
    rewards = [row["reward/mean"] for row in rows]
    first, last = statistics.fmean(rewards[:5]), statistics.fmean(rewards[-5:])
    skipped, entropy = sum(row["updates/nonfinite"] for row in rows), min(row["entropy"] for row in rows)
    summary = json.loads((run / "summary.json").read_text())
    accuracy = {k: summary[k] for k in ("base", "final", "gain") if summary.get(k)}
    return {"steps": len(rows), "first": first, "last": last, "entropy_min": entropy, "skipped": int(skipped),
            "tokens": int(rows[-1]["total/tokens/generated"]), "mismatch_kl": max(r["mismatch_kl/fresh"] for r in rows),
            "holds": last >= first and entropy > 0.05 and not skipped, "accuracy": accuracy}  # fmt: skip


def compare(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any] | None:
    """Final accuracy of ppo against grpo over their seeds, at the same number of generated tokens as can be."""
    finals = {name: [row["accuracy"]["final"]["pass@1"] for row in found.get(name, []) if row["accuracy"]]
              for name in ("grpo", "ppo")}  # fmt: skip
    if not all(finals.values()):
        return None
    means = {name: statistics.fmean(values) for name, values in finals.items()}
    return {"finals": finals, "means": means, "difference": means["ppo"] - means["grpo"],
            "tokens": {name: [row["tokens"] for row in found[name]] for name in finals},
            "within_margin": means["ppo"] >= means["grpo"] - MARGIN}  # fmt: skip


def draw(runs: dict[str, Path], path: Path) -> None:
    """Small multiples of reward against generated tokens, grpo in grey behind each."""
    columns = 4
    figure = Figure(figsize=(11, 2.3 * -(-len(runs) // columns)), dpi=130, layout="constrained")
    grid = figure.subplots(-(-len(runs) // columns), columns, sharex=True, sharey=True, squeeze=False).flat
    curves = {}
    for name, run in runs.items():
        rows = read_metrics(run / "metrics.jsonl")
        curves[name] = [row["total/tokens/generated"] / 1000 for row in rows], [row["reward/mean"] for row in rows]
    for (name, curve), axis in zip(curves.items(), grid, strict=False):
        axis.plot(*curves.get("grpo", curve), color="#888888", linewidth=1)
        axis.plot(*curve, color="#0072B2", linewidth=1.6)
        axis.set_title(name, fontsize=9)
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.25)
    for axis in list(grid):
        axis.set_visible(False)
    figure.supxlabel("tokens generated, thousands", fontsize=9)
    figure.supylabel("mean reward of a step (grey: grpo)", fontsize=9)
    figure.savefig(path)


def table(found: dict[str, list[dict[str, Any]]], command: str) -> str:
    lines = ["# Presets on the demo's task", "",
             f"`{command}`, seed 0: `configs/presets.yaml`, 12 problems x 8 chains a step.",
             "Reward of a step: the share of right answers, before anything that a preset takes off.",
             "Settings of their own: " + "; ".join(f"{name} {' '.join(own)}" for name, own in OWN.items()) + ".", "",
             "| preset | reward, first 5 steps | last 5 | least entropy | skipped steps | tokens | holds |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, rows in found.items():
        r = rows[0]
        lines.append(f"| {name} | {r['first']:.3f} | {r['last']:.3f} | {r['entropy_min']:.3f} | {r['skipped']} "
                     f"| {r['tokens']:,} | {'yes' if r['holds'] else 'no'} |")  # fmt: skip
    lines += ["", "![reward against tokens](rewards.png)", ""]
    if versus := compare(found):
        lines += ["## PPO against GRPO", "", "pass@1 on 512 test problems x 2 samples after 20 steps, by seed.", "",
                  "| | " + " | ".join(f"seed {i}" for i in range(len(versus["finals"]["grpo"]))) + " | mean |",
                  "|---|" + "---|" * (len(versus["finals"]["grpo"]) + 1)]  # fmt: skip
        for name, values in versus["finals"].items():
            lines.append(f"| {name} | " + " | ".join(f"{v:.3f}" for v in values) + f" | {versus['means'][name]:.3f} |")
        verdict = "within" if versus["within_margin"] else "outside"
        lines += ["", f"Difference {versus['difference']:+.3f}: {verdict} the margin of {MARGIN:.2f}.", ""]
    return "\n".join(lines)


def keep(runs: dict[str, list[Path]], out: Path) -> None:
    """What is committed: each run's metrics."""
    for run in (run for paths in runs.values() for run in paths):
        (out / run.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(run / "metrics.jsonl", out / run.name)


def main() -> None:
    given = options()
    names, compared = given.only.split(","), given.compare.split(",")
    runs: dict[str, list[Path]] = {}
    with served(given.config, given.runs) as url:
        for name in names:
            runs[name] = [train(name, 0, url, given)]
        for seed in () if given.quick else (1, 2):
            for name in (name for name in names if name in compared):
                runs[name].append(train(name, seed, url, given))
    found = {name: [judge(run) for run in paths] for name, paths in runs.items()}
    command = "make presets" if given.out else "python benchmarks/presets.py"
    print(table(found, command))
    if given.out:
        keep(runs, given.out)
        (given.out / "README.md").write_text(table(found, command))
        draw({name: paths[0] for name, paths in runs.items()}, given.out / "rewards.png")
    if given.json:
        write_json(given.json, {"presets": found, "ppo_against_grpo": compare(found), "versions": versions()})
    sys.exit(not all(rows[0]["holds"] for rows in found.values()))


if __name__ == "__main__":
    main()
