"""Sample + score -> evaluation cells with intervals: torch-free, works against any Sampler.

The thinking is sampled once, at the largest budget; smaller budgets cut it and sample the answers anew, so that the
cells of one evaluation are paired.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from rewards.answer import final_answer
from rewards.errors import BadInput, Fault
from rewards.types import Problem
from rollout.budget import Budget, cut_chain, finish_thinking, sample_with_budget
from rollout.collect import Scorer, encode_prompts, gather_all, name_problem, score_chain
from rollout.prompt import Style, Template
from rollout.sampling import SamplingParams, request_seed
from rollout.types import Chain, Group, Sampler

EVAL_STEP = 0  # of request seeds and groups: training steps count from 1
Z95 = 1.959963984540054  # the normal's 97.5 % quantile
RESAMPLES = 10_000


@dataclass(frozen=True)
class _Setup:
    """What every chain of one evaluation shares."""

    sampler: Sampler
    template: Template
    pool: Scorer
    spec_of: Callable[[Problem], Any]
    params: SamplingParams
    budgets: tuple[int | None, ...]  # distinct, the largest first; None = no cap
    answer: int
    seed: int


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

    `task_of(problem)` is the task string that its cell goes by. `samples` chains a problem; pass@k and majority@k for
    `ks` (null: powers of two up to `samples`, and it). A budget caps thinking tokens, `answer` those behind them,
    `max_tokens` both. A direct prompt has no thinking: one cell, of `answer` tokens. `on_progress(done, all)` counts
    chains. Raises what `collect` raises.
    """
    if style == "direct":
        budgets, max_tokens = (None,), min(max_tokens, answer)
    if not template.think and any(b is not None for b in budgets):
        raise BadInput(f"budgets {list(budgets)} cap thinking, and this model does not think; set model.think: true")
    params = SamplingParams(max_tokens, template.stop_ids, seed=0, temperature=temperature)
    setup = _Setup(sampler, template, pool, spec_of, params, _largest_first(budgets), answer, seed)
    prompts = encode_prompts(problems, template, style)
    done, total = 0, len(problems) * samples

    async def one(problem: Problem, prompt_ids: list[int], k: int) -> dict[int | None, Chain]:
        nonlocal done
        chains = await name_problem(problem, _at_budgets(setup, problem, prompt_ids, k))
        done += 1
        if on_progress is not None:
            on_progress(done, total)
        return chains

    results = await gather_all(
        one(problem, ids, k) for problem, ids in zip(problems, prompts, strict=True) for k in range(samples)
    )
    rows = [results[i * samples : (i + 1) * samples] for i in range(len(problems))]
    by_budget = {
        budget: [
            Group(problem, [chains[budget] for chains in row], EVAL_STEP)
            for problem, row in zip(problems, rows, strict=True)
        ]
        for budget in setup.budgets
    }
    cell = partial(
        make_cell, text_of=template.response_text, ks=ks, model=model, split=split, style=style,
        temperature=temperature, samples=samples,
    )  # fmt: skip
    cells = [
        cell([group for group in by_budget[budget] if task_of(group.problem) == task], task=task, budget=budget)
        for task in dict.fromkeys(map(task_of, problems))
        for budget in dict.fromkeys(budgets)
    ]
    return cells, by_budget[setup.budgets[0]]


async def _at_budgets(setup: _Setup, problem: Problem, prompt_ids: list[int], k: int) -> dict[int | None, Chain]:
    """One sample at every budget: the longest thinking, and what each smaller cap leaves of it; scored."""
    seeds = partial(request_seed, setup.seed, EVAL_STEP, problem.id, k)
    score = partial(score_chain, problem=problem, template=setup.template, pool=setup.pool, spec=setup.spec_of(problem))
    first, *smaller = setup.budgets
    chain_id = f"{EVAL_STEP}/{problem.id}/{k}"
    budget = Budget(first, setup.answer)
    long = await sample_with_budget(
        setup.sampler, setup.template, chain_id, problem.id, prompt_ids, setup.params, budget, seeds
    )

    async def at(think: int | None) -> Chain:
        cap = Budget(think, setup.answer).cap(setup.params.max_tokens) or 0
        piece = cut_chain(long, setup.template, cap) or long
        params = replace(setup.params, seed=seeds(2 + cap))
        chain = await finish_thinking(setup.sampler, setup.template, piece, params, setup.answer)
        return long if chain is long else await score(replace(chain, id=f"{chain_id}/{think}"))

    # No verdict is waited for before an answer is asked for: what a sampler batches must not depend on the verifier.
    scored, *others = await gather_all([score(long), *(at(think) for think in smaller)])
    return {first: scored} | {b: scored if c is long else c for b, c in zip(smaller, others, strict=True)}


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
        "tokens_mean": sum(chain.sampled_count for chain in chains) / len(chains),
        "truncated": statuses["truncated"] / len(chains),
        "unparsed": statuses["unparsed"] / len(chains),
        "forced_closed": sum(chain.inserted_count > 0 for chain in chains) / len(chains),
        "by_difficulty": _by_difficulty(groups, outcomes),
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


def _by_difficulty(groups: Sequence[Group], outcomes: Sequence[Sequence[bool]]) -> dict[str, Any]:
    """{"3": {pass@1, ci95, n_problems}, …}, easiest first."""
    levels: dict[float, list[Sequence[bool]]] = {}
    for group, samples in zip(groups, outcomes, strict=True):
        if samples:
            levels.setdefault(group.problem.difficulty, []).append(samples)
    return {f"{d:g}": {**pass_at_1(levels[d]), "n_problems": len(levels[d])} for d in sorted(levels)}


def _rates(groups: Iterable[Group]) -> dict[str, list[bool]]:
    return {g.problem.id: [_correct(c) for c in g.chains if c.score is not None and c.score.counts] for g in groups}


def _correct(chain: Chain) -> bool:
    return chain.score is not None and chain.score.correct


def _powers(most: int) -> list[int]:
    """1, 2, 4, … up to `most`, and `most`."""
    return sorted({*(2**i for i in range(most.bit_length())), most})


def _largest_first(budgets: Sequence[int | None]) -> tuple[int | None, ...]:
    return tuple(sorted(dict.fromkeys(budgets), key=lambda b: math.inf if b is None else b, reverse=True))
