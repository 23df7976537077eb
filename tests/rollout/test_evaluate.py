"""Evaluation: estimators against hand-worked numbers and scipy, cells, and budgets cut from one thinking."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rewards.answer import final_answer
from rewards.errors import BadInput, Fault
from rewards.types import Problem, Score, Status
from rollout.chain import bare_chain
from rollout.collect import Examiner, Plan, collect
from rollout.evaluate import (
    at_budget,
    best_of_k,
    make_cell,
    make_cells,
    mean_pass_at_k,
    paired_gain,
    pass_at_1,
    pass_at_k,
    wilson,
)
from rollout.prompt import Template
from rollout.sampling import SamplingParams
from rollout.types import Chain, Group
from tests.fakes import WORDS, FakePool, FakeSampler, word_tokenizer

EOS, OPEN, CLOSE = 2, 3, 4
FIVE, SIX = WORDS.index("5"), WORDS.index("6")
TEMPLATE = Template(word_tokenizer(), think=True, stop_ids=(EOS,))


class TestPassAtK:
    def test_by_hand(self) -> None:
        assert pass_at_k(5, 2, 3) == pytest.approx(0.9)  # 1 - C(3,3) / C(5,3) = 1 - 1/10
        assert pass_at_k(4, 1, 2) == pytest.approx(0.5)
        assert [pass_at_k(8, c, 1) for c in (0, 2, 8)] == pytest.approx([0, 0.25, 1])

    @given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
    def test_is_the_share_of_subsets_with_a_hit(self, nck: tuple[int, int, int]) -> None:
        n, c, k = nck
        subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))

    def test_is_stable_where_binomials_overflow(self) -> None:
        assert pass_at_k(10_000, 3, 5_000) == pytest.approx(1 - stats.hypergeom.pmf(0, 10_000, 3, 5_000))

    def test_the_mean_leaves_out_problems_with_too_few_samples(self) -> None:
        assert mean_pass_at_k([[True, False], [False, False], [True]], 2) == 0.5


class TestInterval:
    def test_wilson_by_hand_and_by_scipy(self) -> None:
        assert wilson(0.8, 10) == pytest.approx([0.4902, 0.9433], abs=1e-4)
        for hits, n in [(0, 5), (1, 7), (30, 64), (64, 64)]:
            reference = stats.binomtest(hits, n).proportion_ci(method="wilson")
            assert wilson(hits / n, n) == pytest.approx([reference.low, reference.high])

    def test_one_sample_a_problem_is_plain_wilson(self) -> None:
        assert pass_at_1([[True]] * 3 + [[False]] * 7) == {"pass@1": 0.3, "ci95": wilson(0.3, 10)}

    def test_copies_of_a_sample_say_nothing_new(self) -> None:
        assert pass_at_1([[True] * 9] * 3 + [[False] * 9] * 7) == pass_at_1([[True]] * 3 + [[False]] * 7)

    def test_independent_samples_all_count_but_no_more(self) -> None:
        """Every problem at exactly 1/2: no spread between problems, so as sure as 40 independent samples."""
        assert pass_at_1([[True, False]] * 20)["ci95"] == pytest.approx(wilson(0.5, 40))

    @pytest.mark.parametrize("value", [False, True])
    def test_has_width_at_0_and_1_and_with_one_problem(self, value: bool) -> None:
        low, high = pass_at_1([[value] * 4] * 10)["ci95"]
        assert (low, high) == pytest.approx(wilson(float(value), 10))
        assert high - low > 0.2
        low, high = pass_at_1([[True, False]])["ci95"]
        assert high - low > 0.8

    def test_problems_without_samples_are_left_out(self) -> None:
        assert pass_at_1([[True], []]) == pass_at_1([[True]])

    def test_covers_the_truth_for_clustered_samples(self) -> None:
        """Beta-binomial problems, 4 samples each: an interval for independent samples would cover 83 %."""
        rng = np.random.default_rng(0)
        covered = 0
        for _ in range(400):
            rates = rng.beta(0.6, 0.9, size=60)
            low, high = pass_at_1((rng.random((60, 4)) < rates[:, None]).tolist())["ci95"]
            covered += low <= 0.4 <= high
        assert 0.92 <= covered / 400 <= 0.99


def a_group(name: str, corrects: list[bool | None], difficulty: float = 0.0, task: str = "toy") -> Group:
    chains = []
    for k, correct in enumerate(corrects):
        status: Status = "error" if correct is None else "ok" if correct else "unparsed"
        score = Score(None if correct is None else float(correct), bool(correct), status)
        chains.append(bare_chain(f"0/{name}/{k}", name, [1]).with_score(score))
    return Group(Problem(name, task, "2", 2, name, difficulty), chains)


class TestBestOf:
    def test_by_hand(self) -> None:
        # the best of two of {3: wrong, 2: right, 1: wrong}: 3 leads two pairs of three, 2 leads one
        assert best_of_k([3, 2, 1], [False, True, False], 2) == pytest.approx(1 / 3)
        assert best_of_k([3, 2, 1], [False, True, False], 1) == pytest.approx(1 / 3)
        assert best_of_k([1, 1], [True, False], 2) == 0.5  # a tie

    @given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6), st.integers(1, 6))
    def test_is_the_mean_over_subsets(self, samples: list[tuple[int, bool]], k: int) -> None:
        k = min(k, len(samples))
        shares = []
        for subset in itertools.combinations(samples, k):
            best = [correct for value, correct in subset if value == max(subset)[0]]
            shares.append(sum(best) / len(best))
        values, correct = zip(*samples, strict=True)
        assert best_of_k(values, correct, k) == pytest.approx(np.mean(shares))

    @given(st.lists(st.booleans(), min_size=1, max_size=8))
    def test_by_the_verifier_itself_it_is_pass_at_k(self, correct: list[bool]) -> None:
        for k in range(1, len(correct) + 1):
            expected = pass_at_k(len(correct), sum(correct), k)
            assert best_of_k([float(c) for c in correct], correct, k) == pytest.approx(expected)


class TestPairedGain:
    def test_by_hand_and_by_scipy(self) -> None:
        rng = np.random.default_rng(1)
        before = [a_group(f"p{i}", list(rng.random(4) < 0.4)) for i in range(30)]
        after = [a_group(f"p{i}", list(rng.random(4) < 0.6)) for i in range(30)]
        rates = [
            np.array([np.mean([c.score == Score(1.0, True, "ok") for c in g.chains]) for g in groups])
            for groups in (before, after)
        ]
        gain = paired_gain(before, after[::-1])
        assert gain["pass@1"] == pytest.approx(np.mean(rates[1] - rates[0]))
        reference = stats.bootstrap((rates[1] - rates[0],), np.mean, method="percentile", rng=2).confidence_interval
        assert gain["ci95"] == pytest.approx([reference.low, reference.high], abs=0.01)
        assert paired_gain(before, after) == paired_gain(before, after)

    def test_pairing_removes_the_spread_between_problems(self) -> None:
        before = [a_group(f"p{i}", [i % 2 == 0, False]) for i in range(20)]
        after = [a_group(f"p{i}", [i % 2 == 0, True]) for i in range(20)]
        assert paired_gain(before, after) == {"pass@1": 0.5, "ci95": [0.5, 0.5]}

    def test_problems_without_a_verdict_leave_the_pairs(self) -> None:
        gain = paired_gain([a_group("a", [None]), a_group("b", [False])], [a_group("a", [True]), a_group("b", [True])])
        assert gain["pass@1"] == 1.0

    def test_what_cannot_be_paired_is_refused(self) -> None:
        with pytest.raises(ValueError, match="2 problems are in one"):
            paired_gain([a_group("a", [True])], [a_group("b", [True])])
        with pytest.raises(ValueError, match="share no judged problem"):
            paired_gain([a_group("a", [None])], [a_group("a", [True])])


def counting_policy(needs: dict[int, int]) -> FakeSampler:
    """Thinks `needs[problem]` tokens and then answers 5; forced to close before, it answers 6."""

    def script(ids: list[int], params: SamplingParams) -> list[int]:
        need = needs[int(WORDS[ids[1]])]
        start = ids.index(OPEN) + 1
        if CLOSE in ids:
            thought = ids.index(CLOSE) - start
            return [FIVE if thought >= need else SIX, EOS][len(ids) - ids.index(CLOSE) - 1 :] + [EOS] * 9
        return [30] * (need - (len(ids) - start)) + [CLOSE, FIVE, EOS] + [EOS] * 600

    return FakeSampler(script)


SUBTASKS = {2: "", 12: "short", 22: "long", 32: "long"}
PROBLEMS = [
    Problem(f"p{need}", "toy", str(need), 5, f"k{need}", difficulty=need // 10, subtask=subtask)
    for need, subtask in SUBTASKS.items()
]
NEEDS = {need: need for need in (2, 12, 22, 32)}


async def run(sampler: Any, pool: Any = None, **options: Any) -> Any:
    names = {field.name for field in fields(Plan)} & options.keys()
    plan = replace(Plan(2, 1.0, (None,), max_tokens=64, answer=4, seed=0), **{n: options.pop(n) for n in names})
    pool = pool or FakePool(lambda response, problem: final_answer(response) == "5")
    examiner = Examiner(sampler, options.pop("template", TEMPLATE), pool, lambda p: None, plan)
    style = options.pop("style", "cot")
    plan.check(examiner.template)
    groups = await collect(options.pop("problems", PROBLEMS), examiner, style, options.pop("on_chain", lambda: None))
    cells = make_cells(groups, plan, lambda p: p.task, examiner.template.response_text, "m", "test", **options)
    return cells, [at_budget(group, plan.of(style).descending[0]) for group in groups]


class TestEvaluate:
    async def test_cells_over_budgets(self) -> None:
        sampler = counting_policy(NEEDS)
        progress: list[int] = []
        budgets = [0, 16, 32, None]
        cells, groups = await run(sampler, budgets=budgets, on_chain=lambda: progress.append(1))
        assert [cell["budget"] for cell in cells] == budgets
        # thinking of 2, 12, 22 and 32 tokens; the close itself must fit within the cap, too
        assert [cell["pass@1"] for cell in cells] == [0, 0.5, 1.0, 1.0]
        assert [cell["forced_closed"] for cell in cells] == [1, 0.5, 0.25, 0]
        assert [cell["tokens_mean"] for cell in cells] == [2, (5 + 15 + 18 + 18) / 4, (5 + 15 + 25 + 34) / 4, 20]
        assert [c.id for c in groups[0].chains] == ["cot/p2/0", "cot/p2/1"]
        assert (groups[0].step, groups[3].chains[0].sampled_count) == (0, 35)
        assert len(progress) == 8

    async def test_thinking_is_sampled_once_and_only_cut_answers_anew(self) -> None:
        sampler = counting_policy(NEEDS)
        await run(sampler, budgets=[0, 16, 32, None], samples=1)
        assert sum(ids[-1] == OPEN for ids, _ in sampler.requests) == 4
        assert len(sampler.requests) == 4 + 4 + 2 + 1
        assert len({p.seed for _, p in sampler.requests}) == len(sampler.requests)

    async def test_no_verdict_is_waited_for_before_an_answer_is_asked_for(self) -> None:
        sampler = counting_policy(NEEDS)

        class Slow(FakePool):
            async def score(self, *args: Any, **options: Any) -> Score:
                while len(sampler.requests) < 4 + 4 + 2:
                    await asyncio.sleep(0)
                return await super().score(*args, **options)

        async with asyncio.timeout(5):
            cells, _ = await run(sampler, Slow(), budgets=[0, 16, None], samples=1)
        assert len(cells) == 3

    async def test_largest_budget_without_none_is_sampled_with_its_cap(self) -> None:
        sampler = counting_policy(NEEDS)
        cells, groups = await run(sampler, budgets=[16, 0])
        assert [(c["budget"], c["pass@1"]) for c in cells] == [(16, 0.5), (0, 0.0)]
        assert [g.chains[0].finish_reason for g in groups] == ["stop", "stop", "forced", "forced"]

    async def test_a_budget_beyond_max_tokens_leaves_the_answer_its_room(self) -> None:
        cells, groups = await run(counting_policy({32: 500}), problems=PROBLEMS[3:], budgets=[512, 0], max_tokens=40)
        assert groups[0].chains[0].sampled_count == 36 + 2
        assert [cell["truncated"] for cell in cells] == [0, 0]

    async def test_a_cell_has_its_keys(self) -> None:
        cells, _ = await run(counting_policy(NEEDS), temperature=0.5, budgets=[16], samples=3, ks=[1, 2, 8])
        assert list(cells[0]) == [
            "model", "task", "split", "prompt", "budget", "k", "temperature", "n_problems", "n_samples", "pass@1",
            "ci95", "pass@k", "majority@k", "tokens_mean", "truncated", "unparsed", "forced_closed", "by_difficulty",
            "by_subtask", "outcomes",
        ]  # fmt: skip
        cell = cells[0]
        assert (cell["model"], cell["task"], cell["split"], cell["prompt"]) == ("m", "toy", "test", "cot")
        assert (cell["temperature"], cell["k"], cell["n_problems"], cell["n_samples"]) == (0.5, 3, 4, 12)
        assert cell["pass@k"] == {"1": 0.5, "2": 0.5}
        assert cell["majority@k"] == {"1": 0.5, "2": 0.5}
        figures = ("pass@1", "n_problems", "tokens_mean")
        assert {d: tuple(row[name] for name in figures) for d, row in cell["by_difficulty"].items()} == {
            "0": (1.0, 1, 5), "1": (1.0, 1, 15), "2": (0.0, 1, 18), "3": (0.0, 1, 18),
        }  # fmt: skip
        assert {d: (row["pass@1"], row["n_problems"]) for d, row in cell["by_subtask"].items()} == {
            "long": (0.0, 2), "short": (1.0, 1),
        }  # fmt: skip

    async def test_direct_prompts_have_one_cell_of_answers(self) -> None:
        sampler = FakeSampler(lambda ids, params: [FIVE, EOS, *[EOS] * 9])
        cells, _ = await run(sampler, style="direct", budgets=[0, 16, None])
        assert [(c["prompt"], c["budget"], c["pass@1"]) for c in cells] == [("direct", None, 1.0)]
        assert {(ids[-1], p.max_tokens) for ids, p in sampler.requests} == {(CLOSE, 4)}

    async def test_tasks_have_cells_of_their_own(self) -> None:
        problems = [PROBLEMS[0], Problem("q", "other", "32", 5, "k")]
        cells, _ = await run(counting_policy(NEEDS), problems=problems, budgets=[0, None])
        assert [(c["task"], c["budget"], c["n_problems"]) for c in cells] == [
            ("toy", 0, 1), ("toy", None, 1), ("other", 0, 1), ("other", None, 1),
        ]  # fmt: skip
        assert [c["outcomes"] for c in cells] == [[[0, 2]], [[2, 2]], [[0, 2]], [[2, 2]]]

    async def test_cut_thinking_is_truncated(self) -> None:
        cells, _ = await run(counting_policy(NEEDS), max_tokens=20)
        assert (cells[0]["truncated"], cells[0]["pass@1"]) == (0.5, 0.5)

    async def test_budgets_need_thinking(self) -> None:
        plain = Template(word_tokenizer(), think=False, stop_ids=(EOS,))
        with pytest.raises(BadInput, match=r"budgets \[16\] cap thinking"):
            await run(counting_policy(NEEDS), template=plain, budgets=[16])

    async def test_the_problem_of_a_refused_prompt_is_named(self) -> None:
        sampler = counting_policy(NEEDS)
        sampler.context = 60
        with pytest.raises(BadInput, match=r"^problem p2: "):
            await run(sampler)


def cell_of(groups: list[Group], texts: dict[str, str] | None = None, ks: list[int] | None = None) -> dict[str, Any]:
    def text_of(chain: Chain) -> str:
        return texts[chain.id] if texts else "5"

    return make_cell(
        groups, text_of, ks, model="m", task="toy", split="test", prompt="cot", budget=None, k=5, temperature=1.0
    )


def test_errored_samples_are_left_out() -> None:
    groups = [a_group("a", [True, None, None]), a_group("b", [False, False, True]), a_group("c", [None] * 3)]
    cell = cell_of(groups)
    assert (cell["n_problems"], cell["n_samples"], cell["pass@1"]) == (2, 4, pytest.approx((1 + 1 / 3) / 2))
    assert cell["unparsed"] == 0.5
    assert cell["outcomes"] == [[1, 1], [1, 3], [0, 0]]
    assert cell["pass@k"] == {"1": pytest.approx(2 / 3), "2": pytest.approx(2 / 3), "3": 1.0}
    with pytest.raises(Fault, match="no sample of task toy was judged"):
        cell_of(groups[2:])


@pytest.mark.parametrize(
    ("answers", "corrects", "share"),
    [
        ("abb", [False, True, True], 1),
        ("abba", [False, True, True, False], 0),  # a tie: a was first
        ("  b", [False, False, True], 1),  # no answer has no vote
        ("  ", [True, True], 0),
    ],
)
def test_majority_votes_ties_and_abstentions(answers: str, corrects: list[bool | None], share: int) -> None:
    texts = {f"0/a/{k}": answer.strip() for k, answer in enumerate(answers)}
    assert cell_of([a_group("a", corrects)], texts, [len(answers)])["majority@k"] == {str(len(answers)): share}


def test_majority_of_k_is_over_disjoint_runs() -> None:
    group = a_group("a", [False, False, True, True, True])
    texts = {f"0/a/{k}": answer for k, answer in enumerate("aabbb")}
    cell = cell_of([group], texts, [2, 5])
    # two by two: aa is wrong, bb is right, the fifth sample has no partner; all five: b
    assert cell["majority@k"] == {"2": 0.5, "5": 1.0}


def valued(name: str, samples: list[tuple[float, bool]]) -> Group:
    group = a_group(name, [correct for _, correct in samples])
    chains = [
        replace(chain, score=Score(value, correct, "ok"))
        for chain, (value, correct) in zip(group.chains, samples, strict=True)
    ]
    return replace(group, chains=chains)


def test_best_of_k_is_told_only_where_values_say_more_than_the_verifier() -> None:
    alike = valued("a", [(0.8, True), (0.3, False), (1.0, True)])
    assert "best_of@k" not in cell_of([alike, valued("b", [(0.9, False)])])  # of two problems: nothing to choose
    short_but_wrong = valued("c", [(0.9, False), (0.8, True)])
    cell = cell_of([alike, short_but_wrong], ks=[1, 2])
    # best of two: in a the wrong one never leads; in c it always does
    assert cell["best_of@k"] == {"1": pytest.approx((2 / 3 + 1 / 2) / 2), "2": 0.5}
    assert cell["pass@k"]["2"] == 1.0
    assert "best_of@k" in cell_of([valued("d", [(1.0, True), (1.0, False)])])  # a tie is left to chance
