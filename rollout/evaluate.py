"""Sample + score -> evaluation cells with intervals: torch-free, works against any Sampler."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from statistics import fmean, mode
from typing import Any, TypeAlias, cast

import numpy as np

from rewards.answer import final_answer
from rewards.errors import Fault
from rewards.types import Problem
from rollout.collect import Plan
from rollout.prompt import Style
from rollout.types import Chain, Group

TaskOf: TypeAlias = Callable[[Problem], str]
TextOf: TypeAlias = Callable[[Chain], str]
Ks: TypeAlias = Sequence[int] | None


def style_of(group: Group) -> str:
    """The prompt style in which a group's question was asked."""
    return group.chains[0].id.partition("/")[0]


def at_budget(group: Group, budget: int | None) -> Group:
    """A question's chains under one budget, by k: its own, else the longest, which the cap left as it was."""
    start = len(f"{style_of(group)}/{group.problem.id}/")
    places = [(chain.id[start:].partition("/"), chain) for chain in group.chains]
    own = {k: chain for (k, _, cap), chain in places if cap == str(budget)}
    return replace(group, chains=[own.get(k, chain) for (k, _, cap), chain in places if not cap])


def make_cells(
    groups: Sequence[Group], plan: Plan, task_of: TaskOf, text_of: TextOf, model: str, split: str, ks: Ks = None
) -> list[dict[str, Any]]:
    """A cell for each style, `task_of(problem)` and budget, in the order of the questions, from `Examiner.ask`.
    `ks` of pass@k and majority@k are by default powers of two up to the plan's samples, and that."""
    apart: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        apart.setdefault((style_of(group), task_of(group.problem)), []).append(group)
    return [
        make_cell(
            [at_budget(group, budget) for group in some], text_of, ks, model=model, task=task, split=split,
            prompt=style, budget=budget, k=plan.samples, temperature=plan.temperature,
        )
        for (style, task), some in apart.items()
        for budget in plan.of(cast(Style, style)).budgets
    ]  # fmt: skip


def make_cell(groups: Sequence[Group], text_of: TextOf, ks: Ks = None, **named: Any) -> dict[str, Any]:
    """One evaluation cell from scored groups of one task. Samples that errored or were skipped are left out. `named`
    are the keys that say what was asked: model, task, split, prompt, budget, k, temperature. `outcomes` is [[correct,
    judged], ...], a pair a group, in order: intervals resample problems, paired across cells. `best_of@k` is there
    where it is not pass@k again. Raises Fault where no sample was judged."""
    outcomes, known = [_correct(group) for group in groups], [group for group in groups if group.judged]
    if not known:
        raise Fault(f"no sample of task {named['task']} was judged; see the reward's errors")
    samples, most = [sample for group in known for sample in group.judged], max(map(len, outcomes))
    statuses = Counter(score.status for _, score in samples)
    ks = sorted({k for k in ks if k <= most} if ks is not None else {*(2**i for i in range(most.bit_length())), most})
    passed = {str(k): mean_pass_at_k(outcomes, k) for k in ks}

    def at_each_k(estimate: Callable[[list[Any], list[bool], int], float], column: list[list[Any]]) -> dict[str, float]:
        rows = [*zip(column, outcomes, strict=True)]
        return {str(k): float(np.mean([estimate(*row, k) for row in rows if len(row[0]) >= k])) for k in ks}

    best = at_each_k(best_of_k, [[score.value or 0.0 for _, score in group.judged] for group in groups])
    return {
        **named,
        "n_problems": len(known),
        "n_samples": len(samples),
        **pass_at_1(outcomes),
        "pass@k": passed,
        "majority@k": at_each_k(majority_of_k, [[final_answer(text_of(c)) for c, _ in g.judged] for g in groups]),
        **({} if np.allclose([*best.values()], [*passed.values()]) else {"best_of@k": best}),
        "tokens_mean": fmean(chain.sampled_count for chain, _ in samples),
        **{share: statuses[share] / len(samples) for share in ("truncated", "unparsed")},
        "forced_closed": sum(chain.inserted_count > 0 for chain, _ in samples) / len(samples),
        "by_difficulty": {f"{level:g}": row for level, row in _levels(known, "difficulty").items()},
        "by_subtask": {name: row for name, row in _levels(known, "subtask").items() if name},
        "outcomes": [[sum(correct), len(correct)] for correct in outcomes],
    }


def pass_at_1(outcomes: Iterable[Sequence[bool]]) -> dict[str, Any]:
    """{"pass@1", "ci95": [low, high]} from each problem's samples: the mean over problems; Wilson's interval, with the
    effective sample size p(1 - p) / var of the problems' means for n (Korn & Graubard 1998; docs/evaluation.md)."""
    clusters = [samples for samples in outcomes if samples]
    rates = np.array([sum(samples) / len(samples) for samples in clusters])
    problems, n, p = len(rates), float(len(rates)), float(rates.mean())
    if problems > 1 and 0 < p < 1:
        variance = float(rates.var(ddof=1)) / problems
        most = float(sum(map(len, clusters)))  # never more certain than independent samples
        n = min(most, max(n, p * (1 - p) / variance)) if variance > 0 else most
    return {"pass@1": p, "ci95": wilson(p, n)}


def wilson(p: float, n: float, z: float = 1.959963984540054) -> list[float]:
    """Wilson's score interval [low, high] for a share `p` of `n` (Wilson 1927); `z` is the normal's 97.5 % quantile."""
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))]


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that one of `k` samples is correct, from `c` correct of `n`: unbiased (Chen et al. 2021, equation 1)."""
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)  # whole numbers: nothing overflows


def mean_pass_at_k(outcomes: Iterable[Sequence[bool]], k: int) -> float:
    """pass@k over the problems that have `k` samples."""
    return float(np.mean([pass_at_k(len(s), sum(s), k) for s in outcomes if len(s) >= k]))


def best_of_k(values: Sequence[float], correct: Sequence[bool], k: int) -> float:
    """Chance that the sample of greatest value among `k` of `n`, drawn without replacement, is correct; ties by lot.
    The sum over ranks i = 1 … n, greatest value first, of C(n - i, k - 1) / C(n, k) x correct_i: rank i is the best of
    the k where the others all rank below. Samples of equal value share the weights of their ranks."""
    n, pairs = len(values), [*zip(values, correct, strict=True)]
    share = {value: fmean(right for other, right in pairs if other == value) for value in set(values)}
    ranked = enumerate(sorted(values, reverse=True), 1)
    return sum(math.comb(n - i, k - 1) / math.comb(n, k) * share[value] for i, value in ranked)


def majority_of_k(answers: Sequence[str | None], correct: Sequence[bool], k: int) -> float:
    """The share of disjoint runs of `k` samples whose most frequent answer is correct; ties go to the answer seen
    first, no answer has no vote."""
    votes = [*zip(answers, correct, strict=True)]
    runs = [[vote for vote in votes[i : i + k] if vote[0] is not None] for i in range(0, len(votes) - k + 1, k)]
    return float(np.mean([bool(run) and dict(run[::-1])[mode(answer for answer, _ in run)] for run in runs]))


def paired_gain(groups_a: Sequence[Group], groups_b: Sequence[Group], seed: int = 0) -> dict[str, Any]:
    """{"pass@1": b - a, "ci95"}: percentile bootstrap over the problems, which must be the same (else ValueError)."""
    rates_a, rates_b = ({g.problem.id: _correct(g) for g in groups} for groups in (groups_a, groups_b))
    if rates_a.keys() != rates_b.keys():
        raise ValueError(f"{len(rates_a.keys() ^ rates_b.keys())} problems are in one evaluation and not in the other")
    gains = np.array([np.mean(rates_b[i]) - np.mean(rates_a[i]) for i in rates_a if rates_a[i] and rates_b[i]])
    if not len(gains):
        raise ValueError("the two evaluations share no judged problem")
    counts = np.random.default_rng(seed).multinomial(len(gains), np.full(len(gains), 1 / len(gains)), size=10_000)
    low, high = np.quantile(counts @ gains / len(gains), [0.025, 0.975])
    return {"pass@1": float(gains.mean()), "ci95": [float(low), float(high)]}


def _correct(group: Group) -> list[bool]:
    return [score.correct for _, score in group.judged]


def _levels(groups: Sequence[Group], name: str) -> dict[Any, dict[str, Any]]:
    """{level: {pass@1, ci95, n_problems, tokens_mean}} by a field of the problems, in ascending order."""
    level_of, rows = attrgetter(f"problem.{name}"), {}
    for level, found in groupby(sorted(groups, key=level_of), level_of):
        some = [*found]
        tokens = fmean(chain.sampled_count for group in some for chain, _ in group.judged)
        rows[level] = pass_at_1(map(_correct, some)) | {"n_problems": len(some), "tokens_mean": tokens}
    return rows
