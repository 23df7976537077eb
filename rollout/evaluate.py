"""Sample + score -> evaluation cells with intervals: torch-free, works against any Sampler."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np

from rewards.answer import final_answer
from rewards.errors import Fault
from rewards.types import Problem
from rollout.collect import Scorer, gather_all
from rollout.examine import Examiner, Plan, at_budget, make_questions, style_of
from rollout.prompt import Style, Template
from rollout.types import Chain, Group, Sampler

Z95 = 1.959963984540054  # the normal's 97.5 % quantile
RESAMPLES = 10_000


async def evaluate(
    problems: Sequence[Problem],
    *,
    sampler: Sampler,
    template: Template,
    pool: Scorer,
    spec_of: Callable[[Problem], Any],
    task_of: Callable[[Problem], str],
    model: str,
    split: str,
    samples: int = 1,
    ks: Sequence[int] | None = None,
    temperature: float = 1.0,
    budgets: Sequence[int | None] = (None,),
    style: Style = "cot",
    max_tokens: int,
    answer: int,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[list[dict[str, Any]], list[Group]]:
    """Cells for each task and budget (in the order given), and the groups at the largest budget (None above all).

    `task_of(problem)` is the task string that its cell goes by; `ks` of pass@k and majority@k may be null: powers of
    two up to `samples`, and it. For the rest see Plan. `on_progress(done, all)` counts chains. Raises what `collect`
    raises, and BadInput for budgets without thinking.
    """
    plan = Plan(samples, temperature, tuple(dict.fromkeys(budgets)), max_tokens, answer, seed)
    plan.of(style).check(template)
    questions, done = make_questions(problems, template, style), itertools.count(1)

    def on_chain() -> None:
        if on_progress is not None:
            on_progress(next(done), len(problems) * samples)

    examiner = Examiner(sampler, template, pool, spec_of, plan)
    groups = await gather_all(examiner.ask(question, on_chain) for question in questions)
    cells = make_cells(groups, plan, task_of, text_of=template.response_text, ks=ks, model=model, split=split)
    return cells, [at_budget(group, plan.of(style).descending[0]) for group in groups]


def make_cells(
    groups: Sequence[Group],
    plan: Plan,
    task_of: Callable[[Problem], str],
    *,
    text_of: Callable[[Chain], str],
    ks: Sequence[int] | None,
    model: str,
    split: str,
) -> list[dict[str, Any]]:
    """A cell for each style, task and budget, in the order of the questions, from what `Examiner.ask` found."""
    apart: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        apart.setdefault((style_of(group), task_of(group.problem)), []).append(group)
    return [
        make_cell(
            [at_budget(group, budget) for group in some], text_of, ks, model=model, task=task, split=split,
            style=cast(Style, style), budget=budget, temperature=plan.temperature, samples=plan.samples,
        )
        for (style, task), some in apart.items()
        for budget in plan.of(cast(Style, style)).budgets
    ]  # fmt: skip


def make_cell(
    groups: Sequence[Group],
    text_of: Callable[[Chain], str],
    ks: Sequence[int] | None = None,
    *,
    model: str,
    task: str,
    split: str,
    style: Style,
    budget: int | None,
    temperature: float,
    samples: int,
) -> dict[str, Any]:
    """One evaluation cell from scored groups of one task. Samples that errored or were skipped are left out.

    `outcomes` is [[correct, judged], ...], a pair a group, in order: intervals resample problems, paired across cells.
    Raises Fault where no sample was judged.
    """
    judged = [[c for c in group.chains if c.score is not None and c.score.counts] for group in groups]
    chains = [chain for group in judged for chain in group]
    if not chains:
        raise Fault(f"no sample of task {task} was judged; see the reward's errors")
    most = max(map(len, judged))
    statuses = Counter(chain.score.status for chain in chains if chain.score is not None)
    ks = sorted({k for k in ks if k <= most}) if ks is not None else _powers(most)
    outcomes = [[_correct(chain) for chain in group] for group in judged]
    return {
        "model": model,
        "task": task,
        "split": split,
        "prompt": style,
        "budget": budget,
        "k": samples,
        "temperature": temperature,
        "n_problems": sum(map(bool, judged)),
        "n_samples": len(chains),
        **pass_at_1(outcomes),
        "pass@k": {str(k): mean_pass_at_k(outcomes, k) for k in ks},
        "majority@k": {str(k): _majority(judged, text_of, k) for k in ks},
        **_best_of(judged, ks),
        "tokens_mean": sum(chain.sampled_count for chain in chains) / len(chains),
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
    0 or 1, where a bootstrap or normal interval has no width, it keeps that of as many problems.
    """
    clusters = [samples for samples in outcomes if samples]
    rates = np.array([sum(samples) / len(samples) for samples in clusters])
    problems, p = len(rates), float(rates.mean())
    n = float(problems)
    if problems > 1 and 0 < p < 1:
        variance = float(rates.var(ddof=1)) / problems
        most = float(sum(map(len, clusters)))  # never more certain than independent samples
        n = min(most, max(n, p * (1 - p) / variance)) if variance > 0 else most
    return {"pass@1": p, "ci95": wilson(p, n)}


def wilson(p: float, n: float, z: float = Z95) -> list[float]:
    """Wilson's score interval [low, high] for a share `p` of `n` (Wilson 1927)."""
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))]


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of `k` samples is correct, from `c` correct of `n`: 1 - C(n-c, k) / C(n, k), unbiased.

    As a product, which does not overflow (Chen et al. 2021, figure 3).
    """
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def mean_pass_at_k(outcomes: Iterable[Sequence[bool]], k: int) -> float:
    """pass@k over the problems that have `k` samples."""
    return float(np.mean([pass_at_k(len(s), sum(s), k) for s in outcomes if len(s) >= k]))


def majority_correct(answers: Sequence[str | None], correct: Sequence[bool]) -> bool:
    """Whether the most frequent answer is correct; ties go to the one seen first, no answer has no vote."""
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return False
    winner = votes.most_common(1)[0][0]  # equal counts come in order of first sight
    return correct[answers.index(winner)]


def best_of_k(values: Sequence[float], correct: Sequence[bool], k: int) -> float:
    """Chance that the sample of greatest value among `k` of `n`, drawn without replacement, is correct; ties by lot.

    The sum over ranks i = 1 … n, greatest value first, of C(n - i, k - 1) / C(n, k) x correct_i: rank i is the best of
    the k where the others all rank below. Samples of equal value share the weights of their ranks.
    """
    n = len(values)
    share: dict[float, float] = {}
    for value in set(values):
        some = [c for v, c in zip(values, correct, strict=True) if v == value]
        share[value] = sum(some) / len(some)
    ranked = sorted(values, reverse=True)
    return sum(math.comb(n - i, k - 1) / math.comb(n, k) * share[value] for i, value in enumerate(ranked, 1))


def paired_gain(groups_a: Sequence[Group], groups_b: Sequence[Group], seed: int = 0) -> dict[str, Any]:
    """{"pass@1": b - a, "ci95": [low, high]}: percentile bootstrap over the problems, paired by id.

    Raises ValueError where the two hold different problems.
    """
    rates_a, rates_b = _rates(groups_a), _rates(groups_b)
    if rates_a.keys() != rates_b.keys():
        raise ValueError(f"{len(rates_a.keys() ^ rates_b.keys())} problems are in one evaluation and not in the other")
    gains = np.array([np.mean(rates_b[i]) - np.mean(rates_a[i]) for i in rates_a if rates_a[i] and rates_b[i]])
    if not len(gains):
        raise ValueError("the two evaluations share no judged problem")
    counts = np.random.default_rng(seed).multinomial(len(gains), np.full(len(gains), 1 / len(gains)), size=RESAMPLES)
    low, high = np.quantile(counts @ gains / len(gains), [0.025, 0.975])
    return {"pass@1": float(gains.mean()), "ci95": [float(low), float(high)]}


def _majority(judged: Sequence[Sequence[Chain]], text_of: Callable[[Chain], str], k: int) -> float:
    """majority@k: the mean over disjoint runs of `k` samples of a problem, then over problems."""
    means = []
    for chains in judged:
        answers = [final_answer(text_of(chain)) for chain in chains]
        correct = [_correct(chain) for chain in chains]
        runs = [slice(i, i + k) for i in range(0, len(chains) - k + 1, k)]
        means += [np.mean([majority_correct(answers[run], correct[run]) for run in runs])] if runs else []
    return float(np.mean(means))


def _best_of(judged: Sequence[Sequence[Chain]], ks: Sequence[int]) -> dict[str, Any]:
    """{"best_of@k": …} where values tell more than correctness does; else it would be pass@k again: {}."""
    values = [[chain.score.value or 0.0 for chain in chains if chain.score is not None] for chains in judged]
    correct = [[_correct(chain) for chain in chains] for chains in judged]
    if all(map(_settled, values, correct)):
        return {}
    means = {k: [best_of_k(v, c, k) for v, c in zip(values, correct, strict=True) if len(v) >= k] for k in ks}
    return {"best_of@k": {str(k): float(np.mean(found)) for k, found in means.items()}}


def _settled(values: Sequence[float], correct: Sequence[bool]) -> bool:
    """Whether every correct sample of a problem has a greater value than every wrong one."""
    right = [v for v, c in zip(values, correct, strict=True) if c]
    wrong = [v for v, c in zip(values, correct, strict=True) if not c]
    return not right or not wrong or min(right) > max(wrong)


def _levels(groups: Sequence[Group], judged: Sequence[Sequence[Chain]], name: str) -> dict[Any, dict[str, Any]]:
    """{level: {pass@1, ci95, n_problems, tokens_mean}} by a field of the problems, in ascending order."""
    levels: dict[Any, list[Sequence[Chain]]] = {}
    for group, chains in zip(groups, judged, strict=True):
        if chains:
            levels.setdefault(getattr(group.problem, name), []).append(chains)
    return {level: _level(levels[level]) for level in sorted(levels)}


def _level(judged: Sequence[Sequence[Chain]]) -> dict[str, Any]:
    tokens = [chain.sampled_count for chains in judged for chain in chains]
    figures = pass_at_1([[_correct(chain) for chain in chains] for chains in judged])
    return {**figures, "n_problems": len(judged), "tokens_mean": sum(tokens) / len(tokens)}


def _rates(groups: Iterable[Group]) -> dict[str, list[bool]]:
    return {g.problem.id: [_correct(c) for c in g.chains if c.score is not None and c.score.counts] for g in groups}


def _correct(chain: Chain) -> bool:
    return chain.score is not None and chain.score.correct


def _powers(most: int) -> list[int]:
    """1, 2, 4, … up to `most`, and `most`."""
    return sorted({*(2**i for i in range(most.bit_length())), most})
