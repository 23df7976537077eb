"""Evaluation inside a run: the same sampler, prompts and verifiers as training, on val and test. And what came out:
the headline figures in summary.json; in eval/changes.json what RL changed beyond accuracy, that is the anatomy of base
and final chains, and what the controls leave of the gain."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rewards.tasks import source_of
from rewards.tasks.countdown import chain_traits, read_tries
from rewards.types import Problem, Split
from rl.build import Setup
from rl.evaluation.axes import read_axes, verdicts
from rl.metrics import means, read_metrics
from rl.rundir import RunDir, command, result_file, versions, write_json
from rl.scoring import COUNTS, audit_figures
from rl.views import RunProgress, words
from rollout.budget import Budgeted
from rollout.collect import EVAL_STEP, Examiner, Plan, Scorer, collect, gather_all, score_chain
from rollout.evaluate import at_budget, make_cells, paired_gain, style_of, wilson
from rollout.prompt import Style, read_json
from rollout.sampling import request_seed
from rollout.store import SampleStore, read
from rollout.types import Chain, Group, Sampler

Cells = list[dict[str, Any]]

STYLES: tuple[Style, ...] = ("cot", "direct")  # that are asked for; answers at once only beside budgets
VOTES = 4  # chains a problem of the base for the majority that costs as much as one final chain (`base-votes`)


class Evaluator:
    """Evaluates a run's policy, once under each label, and says what it found; keeps the cells and every chain."""

    def __init__(self, setup: Setup, run: RunDir, pool: Scorer, progress: RunProgress) -> None:
        self.setup, self.run, self.pool, self.progress = setup, run, pool, progress

    async def run_once(
        self, label: str, split: Split, sampler: Sampler, budgets: Sequence[int] = (), samples: int = 0
    ) -> None:
        """Evaluate under `label`, `samples` chains a problem (0 = eval.samples); with budgets direct answers, too."""
        if read_cells(self.run, label) is not None:
            return
        setup, config, phase = self.setup, self.setup.config, self.progress.phase
        caps = tuple(dict.fromkeys([*budgets, None])) if budgets else (config.budget.think,)
        plan = replace(setup.plan, samples=samples or config.eval.samples, budgets=caps)
        plan.check(setup.template)
        examiner = Examiner(sampler, setup.template, self.pool, setup.spec_of, plan)
        problems, styles = setup.eval_problems(split), STYLES if budgets else STYLES[:1]
        done, total, groups = itertools.count(1), len(styles) * len(problems) * plan.samples, list[Group]()
        for style in styles:
            groups += await collect(problems, examiner, style, lambda: phase(f"evaluating {next(done)}/{total}"))
        self._store(label, split, plan, groups)

    async def run_patient(self, sampler: Sampler) -> None:
        """The control base-patient, what patience alone buys: `base`, each close taken back until a hit is claimed."""
        label, setup, template = "base-patient", self.setup, self.setup.template
        if read_cells(self.run, label) is not None:
            return
        base, plan = read_groups(self.run, "base"), setup.plan

        async def go_on(problem: Problem, k: int, chain: Chain) -> Chain:
            seeds = partial(request_seed, plan.seed, EVAL_STEP, problem.id, k)
            asked = Budgeted(sampler, template, seeds, plan.temperature, plan.max_tokens, plan.answer)
            longer = await asked.extend(chain, None, lambda thought: any(t.claimed for t in read_tries(thought)[-1:]))
            return await score_chain(longer, problem, template=template, pool=self.pool, spec=setup.spec_of(problem))

        chains = iter(await gather_all(go_on(g.problem, k, chain) for g in base for k, chain in enumerate(g.chains)))
        groups = [Group(g.problem, [next(chains) for _ in g.chains], g.step) for g in base]
        self._store(label, "test", replace(plan, samples=len(groups[0].chains), budgets=(None,)), groups)

    def _store(self, label: str, split: Split, plan: Plan, groups: list[Group]) -> None:
        """Keep the cells, and the thinking chains at the largest budget."""
        task_of, text_of = partial(source_of, self.setup.task), self.setup.template.response_text
        cells, samples = make_cells(groups, plan, task_of, text_of, label, split), samples_path(self.run, label)
        samples.parent.mkdir(parents=True, exist_ok=True)
        samples.unlink(missing_ok=True)  # of an evaluation that was killed
        longest = [at_budget(group, plan.descending[0]) for group in groups if style_of(group) == STYLES[0]]
        SampleStore(samples).append(0, longest)
        write_json(self.run.eval / f"{label}.json", result_file(cells))
        self.progress.say(f"{label} on {split}: {words('accuracy', headline(cells))}")


def clear_evaluations(run: RunDir, step: int, finished: bool) -> None:
    """Remove evaluations of weights past `step`, and unless the run is `finished` its final one and its summary."""
    for path in run.eval.glob("*.json*"):
        label = path.name.partition(".")[0]
        number = label.removeprefix("budgets-").removeprefix("step-")
        if (number.isdigit() and int(number) > step) or (label == "final" and not finished):
            path.unlink()
    if not finished:
        run.summary.unlink(missing_ok=True)


def headline(cells: Cells) -> dict[str, Any]:
    """The cell that stands for an evaluation: the first task without a cap on thinking."""
    return next((cell for cell in cells if cell["budget"] is None), cells[-1])


def samples_path(run: RunDir, label: str) -> Path:
    return run.eval / f"{label}.samples.jsonl.zst"


def read_groups(run: RunDir, label: str) -> list[Group]:
    """The chains of one evaluation of a run, at its largest budget."""
    return [group for _, groups in read(samples_path(run, label)) for group in groups]


def read_cells(run: RunDir, label: str) -> Cells | None:
    """The cells of one evaluation of a run, None where it was not made."""
    return read_json(run.eval / f"{label}.json").get("cells")


def write_summary(setup: Setup, run: RunDir) -> None:
    """Write summary.json and, where base and final were evaluated, eval/changes.json; say in words what came out."""
    config, rows = setup.config, read_metrics(run.metrics)
    last = rows[-1] if rows else {}
    summary: dict[str, Any] = {
        "steps": last.get("step", 0),
        "seconds": last.get("total/time/step", 0.0),
        "flops": {"train": last.get("total/flops/train", 0.0), "rollout": last.get("total/flops/rollout", 0.0)},
        "tokens": {"generated": last.get("total/tokens/generated", 0)},
        "reward": {"first": rows[0]["reward/mean"], "last": last["reward/mean"]} if rows else None,
        "audit": audit_figures(Counter({k: sum(row.get(f"rewards/audit_{k}", 0) for row in rows) for k in COUNTS})),
        "sampler": config.sampler,
        "world_size": setup.ranks,
        "sharding": config.train.sharding,
        "threads": config.train.threads or max(1, setup.hardware.cores // setup.ranks),
        "versions": versions(),
        "seeds": [config.seed],
        "commands": [command()],
    }
    sides = {label: read_cells(run, label) or [] for label in ("base", "final")}
    heads, changes, axes = {}, None, None
    if all(sides.values()):
        axes, groups = read_axes([run.path]), [read_groups(run, label) for label in sides]
        task = source_of(setup.task, groups[0][0].problem)  # the headline's
        before, after = ([g for g in side if source_of(setup.task, g.problem) == task] for side in groups)
        heads = {label: headline(cells) for label, cells in sides.items()}
        summary |= {label: {key: cell[key] for key in ("pass@1", "ci95")} for label, cell in heads.items()}
        budgets = {label: [cell for cell in cells if cell["budget"] is not None] for label, cells in sides.items()}
        summary |= {"gain": paired_gain(before, after), "budgets": budgets, "verdict": verdicts(axes)}
        changes = write_changes(setup, run)
    write_json(run.summary, summary)
    print(words("summary", run.path, summary, heads, changes, axes), end="")


def write_changes(setup: Setup, run: RunDir) -> dict[str, Any]:
    """eval/changes.json: {base, final: traits, controls: [cell-like], beyond_patience: paired gain}."""
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
    return changes


def anatomy(groups: Sequence[Group], text_of: Callable[[Chain], str]) -> dict[str, Any]:
    """Means of the chains' traits, and {difficulty: {tokens, pass@1, …traits}}, easiest first."""
    rows: list[dict[str, float]] = []
    levels: dict[float, list[dict[str, float]]] = {}
    for problem, chain in [(group.problem, chain) for group in groups for chain in group.chains]:
        right = chain.score is not None and chain.score.correct
        row = {"tokens": float(chain.sampled_count), "pass@1": float(right)}
        rows.append(row | chain_traits(problem, text_of(chain)))
        levels.setdefault(problem.difficulty, []).append(rows[-1])
    return means(rows) | {"by_difficulty": {f"{level:g}": means(some) for level, some in sorted(levels.items())}}


def vote_controls(cell: dict[str, Any], tokens: float) -> list[dict[str, Any]]:
    """Majority and best by verifier of as many base chains as cost at most `tokens`, at least one."""
    k = max((k for k in map(int, cell["majority@k"]) if k * cell["tokens_mean"] <= tokens), default=1)
    shares = {"majority": cell["majority@k"][str(k)], "best by the verifier": cell["pass@k"][str(k)]}
    return [
        {"name": f"base, {name} of {k}", "pass@1": p, "ci95": wilson(p, cell["n_problems"])}
        | {"tokens_mean": k * cell["tokens_mean"]}
        for name, p in shares.items()
    ]
