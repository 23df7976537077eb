"""What came out of a run, from the files that it wrote: the headline figures in summary.json, and in eval/changes.json
what RL changed beyond accuracy: the anatomy of base and final chains, and what the controls leave of the gain."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rewards.tasks import source_of
from rewards.tasks.anatomy import chain_traits
from rl.build import Setup
from rl.evaluation.axes import read_axes, summarise, verdicts
from rl.evaluator import describe, headline, read_cells, read_groups
from rl.metrics import means, read_metrics
from rl.rundir import RunDir, command, versions, write_json
from rl.scoring import COUNTS, audit_figures
from rollout.evaluate import paired_gain, wilson
from rollout.types import Chain, Group


def write_summary(setup: Setup, run: RunDir) -> None:
    """Write summary.json and, where base and final were evaluated, eval/changes.json; say in words what came out."""
    config, rows = setup.config, read_metrics(run.metrics)
    last = rows[-1] if rows else {}
    base, final = read_cells(run, "base"), read_cells(run, "final")
    audit = audit_figures(Counter({name: sum(row.get(f"rewards/audit_{name}", 0) for row in rows) for name in COUNTS}))
    summary: dict[str, Any] = {
        "steps": last.get("step", 0),
        "seconds": last.get("total/time/step", 0.0),
        "flops": {"train": last.get("total/flops/train", 0.0), "rollout": last.get("total/flops/rollout", 0.0)},
        "tokens": {"generated": last.get("total/tokens/generated", 0)},
        "reward": {"first": rows[0]["reward/mean"], "last": last["reward/mean"]} if rows else None,
        "audit": audit,
    }
    summary |= {"sampler": config.sampler, "world_size": 1, "sharding": "none"}
    summary |= {"threads": config.train.threads or setup.hardware.cores, "versions": versions()}
    summary |= {"seeds": [config.seed], "commands": [command()]}
    if audit.get("disagreed"):
        print(
            "audit: a second verifier finds {disagreed} of {checked} answers judged wrong right; with them the first "
            "misses {false_negatives:.1%} [{false_negatives_low:.1%}, {false_negatives_high:.1%}] of the right ones; "
            "see audit.jsonl".format(**audit)
        )
    if base and final:
        axes, sides = read_axes([run.path]), {"base": base, "final": final}
        chains = [read_groups(run, label) for label in sides]
        task = source_of(setup.task, chains[0][0].problem)  # the headline's
        before, after = (
            [group for group in groups if source_of(setup.task, group.problem) == task] for groups in chains
        )
        summary |= {label: {key: headline(cells)[key] for key in ("pass@1", "ci95")} for label, cells in sides.items()}
        budgets = {label: [cell for cell in cells if cell["budget"] is not None] for label, cells in sides.items()}
        summary |= {"gain": paired_gain(before, after), "budgets": budgets, "verdict": verdicts(axes)}
        print(f"base  {describe(headline(base))}\nfinal {describe(headline(final))}")
        print(*write_changes(setup, run)[1], *summarise(axes), sep="\n")
    write_json(run.summary, summary)
    print(f"{run.path}: {summary['steps']} steps in {summary['seconds']:.0f} s")


def write_changes(setup: Setup, run: RunDir) -> tuple[dict[str, Any], list[str]]:
    """eval/changes.json, {base, final: traits, controls: [cell-like], beyond_patience: paired gain}, and its words."""
    text_of = setup.template.response_text
    base, final = read_groups(run, "base"), read_groups(run, "final")
    changes: dict[str, Any] = {"base": anatomy(base, text_of), "final": anatomy(final, text_of), "controls": []}
    patient, votes, last = (read_cells(run, label) for label in ("base-patient", "base-votes", "final"))
    if patient and votes and last:
        kept = {key: headline(patient)[key] for key in ("pass@1", "ci95", "tokens_mean")}
        voted = vote_controls(headline(votes), headline(last)["tokens_mean"])
        changes["controls"] = [{"name": "base, early closes taken back", **kept}, *voted]
        changes["beyond_patience"] = paired_gain(read_groups(run, "base-patient"), final)
    write_json(run.eval / "changes.json", changes)
    said = [f"{c['name']}: {c['pass@1']:.3f} at {c['tokens_mean']:.0f} tokens" for c in changes["controls"]]
    if "beyond_patience" in changes:
        gain, (low, high) = (changes["beyond_patience"][key] for key in ("pass@1", "ci95"))
        said.append(f"gain beyond undone impatience: {gain:+.3f} [{low:+.3f}, {high:+.3f}]")
    return changes, said


def anatomy(groups: Sequence[Group], text_of: Callable[[Chain], str]) -> dict[str, Any]:
    """Means of the chains' traits, and {difficulty: {tokens, pass@1, …traits}}, easiest first."""
    rows: list[dict[str, float]] = []
    levels: dict[float, list[dict[str, float]]] = {}
    for group in groups:
        for chain in group.chains:
            right = chain.score is not None and chain.score.correct
            row = {"tokens": float(chain.sampled_count), "pass@1": float(right)}
            row |= chain_traits(group.problem, text_of(chain))
            rows.append(row)
            levels.setdefault(group.problem.difficulty, []).append(row)
    return means(rows) | {"by_difficulty": {f"{level:g}": means(some) for level, some in sorted(levels.items())}}


def vote_controls(cell: dict[str, Any], tokens: float) -> list[dict[str, Any]]:
    """Majority and best by verifier of as many base chains as cost at most `tokens`, at least one."""
    k = max((k for k in map(int, cell["majority@k"]) if k * cell["tokens_mean"] <= tokens), default=1)
    shares = {"majority": cell["majority@k"][str(k)], "best by the verifier": cell["pass@k"][str(k)]}
    spent = k * cell["tokens_mean"]
    return [
        {"name": f"base, {name} of {k}", "pass@1": p, "ci95": wilson(p, cell["n_problems"]), "tokens_mean": spent}
        for name, p in shares.items()
    ]
