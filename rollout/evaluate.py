"""Sample + score -> evaluation cells with intervals: torch-free, works against any Sampler."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, TypeAlias, cast

import numpy as np

from rewards.answer import final_answer
from rewards.errors import Fault
from rewards.types import Problem, Score
from rollout.collect import Plan
from rollout.prompt import Style
from rollout.types import Chain, Group

TaskOf: TypeAlias = Callable[[Problem], str]
TextOf: TypeAlias = Callable[[Chain], str]
Ks: TypeAlias = Sequence[int] | None
Judged: TypeAlias = list[tuple[Chain, Score]]  # the samples of one problem that neither errored nor were skipped


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
    judged = [_judged(group) for group in groups]
    chains, scores = [c for some in judged for c, _ in some], [s for some in judged for _, s in some]
    if not chains:
        raise Fault(f"no sample of task {named['task']} was judged; see the reward's errors")
    most = max(map(len, judged))
    ks = sorted({k for k in ks if k <= most} if ks is not None else {*(2**i for i in range(most.bit_length())), most})
    statuses = Counter(score.status for score in scores)
    outcomes = [_correct(some) for some in judged]
    valued = [([score.value or 0.0 for _, score in some], _correct(some)) for some in judged]
    passed = {str(k): mean_pass_at_k(outcomes, k) for k in ks}
    best = {str(k): float(np.mean([best_of_k(*each, k) for each in valued if len(each[0]) >= k])) for k in ks}
    return {
        **named,
        "n_problems": sum(map(bool, judged)),
        "n_samples": len(chains),
        **pass_at_1(outcomes),
        "pass@k": passed,
        "majority@k": {str(k): _majority(judged, text_of, k) for k in ks},
        **({} if np.allclose([*best.values()], [*passed.values()]) else {"best_of@k": best}),
        "tokens_mean": fmean(chain.sampled_count for chain in chains),
        "truncated": statuses["truncated"] / len(chains),
        "unparsed": statuses["unparsed"] / len(chains),
        "forced_closed": sum(chain.inserted_count > 0 for chain in chains) / len(chains),
        "by_difficulty": {f"{level:g}": row for level, row in _levels(groups, judged, "difficulty").items()},
        "by_subtask": {name: row for name, row in _levels(groups, judged, "subtask").items() if name},
        "outcomes": [[sum(samples), len(samples)] for samples in outcomes],
    }


def pass_at_1(outcomes: Iterable[Sequence[bool]]) -> dict[str, Any]:
    """{"pass@1", "ci95": [low, high]} from each problem's samples: the mean over problems, and its interval.
    The samples of a problem are one cluster. The interval is Wilson's with the number of problems replaced by the
    effective sample size n = p(1 - p) / var, var the variance of the mean of the problems' means (Korn & Graubard 1998,
    with Wilson's form): with one sample a problem it is Wilson's own, perfectly correlated samples count once, and at
    0 or 1, where a bootstrap or normal interval has no width, it keeps that of as many problems."""
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
    n, share = len(values), dict[float, float]()
    for value in set(values):
        some = [c for v, c in zip(values, correct, strict=True) if v == value]
        share[value] = sum(some) / len(some)
    ranked = enumerate(sorted(values, reverse=True), 1)
    return sum(math.comb(n - i, k - 1) / math.comb(n, k) * share[value] for i, value in ranked)


def paired_gain(groups_a: Sequence[Group], groups_b: Sequence[Group], seed: int = 0) -> dict[str, Any]:
    """{"pass@1": b - a, "ci95"}: percentile bootstrap over the problems, which must be the same (else ValueError)."""
    rates_a, rates_b = ({g.problem.id: _correct(_judged(g)) for g in groups} for groups in (groups_a, groups_b))
    if rates_a.keys() != rates_b.keys():
        raise ValueError(f"{len(rates_a.keys() ^ rates_b.keys())} problems are in one evaluation and not in the other")
    gains = np.array([np.mean(rates_b[i]) - np.mean(rates_a[i]) for i in rates_a if rates_a[i] and rates_b[i]])
    if not len(gains):
        raise ValueError("the two evaluations share no judged problem")
    counts = np.random.default_rng(seed).multinomial(len(gains), np.full(len(gains), 1 / len(gains)), size=10_000)
    low, high = np.quantile(counts @ gains / len(gains), [0.025, 0.975])
    return {"pass@1": float(gains.mean()), "ci95": [float(low), float(high)]}


def _judged(group: Group) -> Judged:
    return [(chain, chain.score) for chain in group.chains if chain.score is not None and chain.score.counts]


def _correct(samples: Judged) -> list[bool]:
    return [score.correct for _, score in samples]


def _majority(judged: Sequence[Judged], text_of: TextOf, k: int) -> float:
    """majority@k: the share of disjoint runs of `k` samples whose most frequent answer is correct, then the mean over
    problems; ties go to the answer seen first, no answer has no vote."""
    means = []
    for samples in judged:
        answers, hits = [(final_answer(text_of(chain)), score.correct) for chain, score in samples], []
        for i in range(0, len(samples) - k + 1, k):
            run = [(answer, correct) for answer, correct in answers[i : i + k] if answer is not None]
            votes = Counter(answer for answer, _ in run).most_common(1)  # equal counts: first sight first
            hits.append(bool(votes) and next(correct for answer, correct in run if answer == votes[0][0]))
        means += [np.mean(hits)] if hits else []
    return float(np.mean(means))


def _levels(groups: Sequence[Group], judged: Sequence[Judged], name: str) -> dict[Any, dict[str, Any]]:
    """{level: {pass@1, ci95, n_problems, tokens_mean}} by a field of the problems, in ascending order."""
    levels: dict[Any, list[Judged]] = {}
    for group, samples in zip(groups, judged, strict=True):
        if samples:
            levels.setdefault(getattr(group.problem, name), []).append(samples)
    rows = {}
    for level, some in sorted(levels.items()):
        tokens = fmean(chain.sampled_count for samples in some for chain, _ in samples)
        rows[level] = {**pass_at_1(map(_correct, some)), "n_problems": len(some), "tokens_mean": tokens}
    return rows
