"""What RL changed, beyond accuracy: the anatomy of base and final chains, and what the controls leave of the gain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rewards.tasks.anatomy import chain_traits
from rl.build import Setup
from rl.evaluator import headline, read_cells, read_groups
from rl.metrics import means
from rl.rundir import RunDir, write_json
from rollout.evaluate import paired_gain, wilson
from rollout.types import Chain, Group


def write_changes(setup: Setup, run: RunDir) -> dict[str, Any]:
    """eval/changes.json: {base, final: traits, controls: [cell-like], beyond: {control: paired gain of final}}."""
    text_of = setup.template.response_text
    base, final = read_groups(run, "base"), read_groups(run, "final")
    changes: dict[str, Any] = {"base": anatomy(base, text_of), "final": anatomy(final, text_of), "controls": []}
    patient, votes, last = (read_cells(run, label) for label in ("base-patient", "base-votes", "final"))
    if patient and votes and last:
        cell = headline(patient)
        changes["controls"] += [
            _control("base, early closes taken back", cell["pass@1"], cell["ci95"], cell["tokens_mean"]),
            *_votes(headline(votes), headline(last)["tokens_mean"]),
        ]
        changes["beyond_patience"] = paired_gain(read_groups(run, "base-patient"), final)
    write_json(run.eval / "changes.json", changes)
    return changes


def anatomy(groups: Sequence[Group], text_of: Callable[[Chain], str]) -> dict[str, Any]:
    """Means of the chains' traits, and {difficulty: {tokens, pass@1, …traits}}, easiest first."""
    levels = sorted({group.problem.difficulty for group in groups})
    rows = {level: _rows([g for g in groups if g.problem.difficulty == level], text_of) for level in levels}
    everything = [row for some in rows.values() for row in some]
    return means(everything) | {"by_difficulty": {f"{level:g}": means(some) for level, some in rows.items()}}


def _rows(groups: Sequence[Group], text_of: Callable[[Chain], str]) -> list[dict[str, float]]:
    return [
        {"tokens": float(chain.sampled_count), "pass@1": float(chain.score is not None and chain.score.correct)}
        | chain_traits(group.problem, text_of(chain))
        for group in groups
        for chain in group.chains
    ]


def _votes(cell: dict[str, Any], tokens: float) -> list[dict[str, Any]]:
    """Majority and best by verifier of as many base chains as cost at most `tokens`, at least one."""
    sizes = [int(k) for k in cell["majority@k"]]
    k = max((k for k in sizes if k * cell["tokens_mean"] <= tokens), default=1)
    shares = {"majority": cell["majority@k"][str(k)], "best by the verifier": cell["pass@k"][str(k)]}
    return [
        _control(f"base, {name} of {k}", share, wilson(share, cell["n_problems"]), k * cell["tokens_mean"])
        for name, share in shares.items()
    ]


def _control(name: str, share: float, ci95: list[float], tokens: float) -> dict[str, Any]:
    return {"name": name, "pass@1": share, "ci95": ci95, "tokens_mean": tokens}


def describe_changes(changes: dict[str, Any]) -> list[str]:
    """The controls and what is left of the gain, in words."""
    lines = [f"{c['name']}: {c['pass@1']:.3f} at {c['tokens_mean']:.0f} tokens" for c in changes["controls"]]
    if "beyond_patience" in changes:
        low, high = changes["beyond_patience"]["ci95"]
        gain = changes["beyond_patience"]["pass@1"]
        lines.append(f"gain beyond undone impatience: {gain:+.3f} [{low:+.3f}, {high:+.3f}]")
    return lines
