"""Questions and the chains they get: ids that tell style and budget, chains of one budget out of all."""

from __future__ import annotations

from typing import Any

import pytest

from rewards.answer import final_answer
from rewards.errors import BadInput
from rewards.types import Problem
from rollout.collect import Examiner, Plan, make_questions
from rollout.evaluate import at_budget, style_of
from rollout.prompt import Style, Template
from rollout.types import Group
from tests.fakes import FakePool, word_tokenizer
from tests.rollout.test_evaluate import EOS, NEEDS, OPEN, PROBLEMS, TEMPLATE, counting_policy

PLAN = Plan(samples=2, temperature=1.0, budgets=(0, 16, 32, None), max_tokens=64, answer=4, seed=0)


async def ask(problem: Problem, style: Style = "cot", plan: Plan = PLAN, sampler: Any = None) -> Group:
    pool = FakePool(lambda response, problem: final_answer(response) == "5")
    examiner = Examiner(sampler or counting_policy(NEEDS), TEMPLATE, pool, lambda p: None, plan)
    (question,) = make_questions([problem], TEMPLATE, style)
    return await examiner.ask(question)


async def test_every_chain_is_kept_once_and_its_id_tells_its_budget() -> None:
    short, _, middle, _ = [await ask(problem) for problem in PROBLEMS]
    assert [c.id for c in short.chains] == ["cot/p2/0", "cot/p2/0/0", "cot/p2/1", "cot/p2/1/0"]
    assert [c.id for c in middle.chains[:3]] == ["cot/p22/0", "cot/p22/0/16", "cot/p22/0/0"]
    assert all(c.score is not None and c.score.id == c.id for c in middle.chains)
    assert style_of(middle) == "cot"


async def test_the_chains_of_one_budget() -> None:
    group = await ask(PROBLEMS[2])  # thinks 22 tokens and the close
    for budget, thought, right in [(0, 0, False), (16, 16, False), (32, 23, True), (None, 23, True)]:
        chains = at_budget(group, budget).chains
        assert [chain.id.split("/")[2] for chain in chains] == ["0", "1"]
        assert {sum(c.sampled[c.prompt_len :]) - 2 for c in chains} == {thought}
        assert {c.score is not None and c.score.correct for c in chains} == {right}


async def test_problem_ids_may_look_like_k_and_budget() -> None:
    problem = Problem("file.jsonl:22/0/16", "toy", "22", 5, "k")
    group = await ask(problem)
    assert [c.id for c in at_budget(group, 16).chains] == [f"cot/{problem.id}/{k}/16" for k in (0, 1)]
    assert [c.id for c in at_budget(group, None).chains] == [f"cot/{problem.id}/{k}" for k in (0, 1)]


async def test_a_direct_question_has_one_budget_and_the_answers_tokens() -> None:
    direct = PLAN.of("direct")
    assert (direct.budgets, direct.max_tokens, PLAN.of("fewshot")) == ((None,), 4, PLAN)


def test_few_shot_questions_have_their_examples_before_them() -> None:
    shots = {"p2": [("1 + 1", "2")], "p12": []}
    first, second = make_questions(PROBLEMS[:2], TEMPLATE, "fewshot", lambda problem: shots[problem.id])
    assert TEMPLATE.tokenizer.decode(first.prompt_ids) == "<bos> 1 + 1 2 2 <think>"
    assert TEMPLATE.tokenizer.decode(second.prompt_ids) == "<bos> 12 <think>"
    assert first.prompt_ids[-1] == OPEN


def test_budgets_come_largest_first_and_need_thinking() -> None:
    assert PLAN.descending == [None, 32, 16, 0]
    PLAN.check(TEMPLATE)
    plain = Template(word_tokenizer(), think=False, stop_ids=(EOS,))
    PLAN.of("direct").check(plain)
    with pytest.raises(BadInput, match="cap thinking"):
        PLAN.check(plain)


def test_a_bad_prompt_names_its_problem() -> None:
    with pytest.raises(BadInput, match=r"problem odd: .*777"):
        make_questions([Problem("odd", "toy", "777", 5, "k")], TEMPLATE, "cot")
