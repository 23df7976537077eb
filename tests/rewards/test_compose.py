from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import compose
from rewards.errors import BadInput
from rewards.pool import RewardPool
from rewards.registry import judge, load_reward
from rewards.types import Extras, Problem, Score

PROBLEM = Problem("q", "jsonl", "?", "4", "k", reward="exact_match")
GOOD, BARE = "<think>2 + 2</think>4", "4"  # both are right, the first has the form
ANSWER_AND_FORM = {
    "answer": {"reward": "exact_match", "weight": 1},
    "form": {"reward": "format", "weight": 0.25},
}

PLUGIN = """
import asyncio
loops = []
def raises(response, problem): raise OSError("no such disk")
def skips(response, problem): return None
def nan(response, problem): return float("nan")
def half(response, problem): return 0.5
def minus(response, problem): return -1.0
def rejects(response, problem):
    from rewards.types import Score
    return Score(0.7, True, "rejected", detail="a bomb")
def bloats(response, problem): raise MemoryError
def deep(response, problem): raise RecursionError
async def later(response, problem):
    await asyncio.sleep(0)
    loops.append(asyncio.get_running_loop())
    return response.endswith(problem.answer)
def trl(completions, answer, log_metric=None, **columns):
    log_metric("size", len(completions[0]))
    return [float(c.endswith(a)) for c, a in zip(completions, answer)]
def extra(response, problem, extras=None): return float(extras.step)
extra.takes_extras = True
def slow(response, problem): return 1.0
slow.item_limit = 4.0
slow.warm_up = lambda: loops.append("warm")
def cut(response, problem): return 1.0
cut.scores_truncated = True
"""


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)


def weighted(parts: dict[str, Any] = ANSWER_AND_FORM, **more: Any) -> Any:
    return load_reward({"use": "weighted", "args": {"parts": parts, **more}})


def both(other: str, **more: Any) -> Any:
    """The answer, and a function of the plugin."""
    return weighted({"answer": {"reward": "exact_match"}, "other": {"reward": f"p.py:{other}"}}, **more)


@pytest.mark.parametrize(
    ("response", "value", "correct", "status", "parts"),
    [
        (GOOD, 1.25, True, "ok", {"answer": 1.0, "form": 1.0}),
        (BARE, 1.0, True, "ok", {"answer": 1.0, "form": 0.0}),
        ("<think>2 + 2</think>5", 0.25, False, "wrong", {"answer": 0.0, "form": 1.0}),
        ("5", 0.0, False, "wrong", {"answer": 0.0, "form": 0.0}),
        ("<think>4", 0.0, False, "unparsed", {"answer": 0.0, "form": 0.0}),
    ],
)
def test_weighted(response: str, value: float, correct: bool, status: str, parts: dict[str, float]) -> None:
    score = judge(weighted(), response, PROBLEM)
    assert (score.value, score.correct, score.status, score.parts) == (value, correct, status, parts)


def test_the_primary_is_the_first_part_or_the_one_named() -> None:
    score = judge(weighted(primary="form"), GOOD, PROBLEM)
    assert (score.value, score.correct, score.status) == (1.0, False, "ok")  # form is never correct: no credit
    swapped = dict(reversed(ANSWER_AND_FORM.items()))
    assert judge(weighted(swapped, primary="answer"), GOOD, PROBLEM).correct


@pytest.mark.parametrize(
    ("response", "value", "correct"),
    [(GOOD, 1.0, True), (BARE, 0.0, True), ("<think></think>5", 0.0, False), ("5", 0.0, False)],
)
def test_a_gate_lets_the_value_through_and_leaves_correct_alone(response: str, value: float, correct: bool) -> None:
    gate = load_reward({"use": "gate", "args": {"gate": "format", "reward": "exact_match"}})
    score = judge(gate, response, PROBLEM)
    assert (score.value, score.correct) == (value, correct)
    assert score.parts == {"gate": float("<think>" in response), "reward": float(correct)}


def test_a_closed_gate_is_no_shelter_from_a_negative_value() -> None:
    args = {"gate": "format", "reward": "p.py:minus", "partial": True}
    assert judge(load_reward({"use": "gate", "args": args}), BARE, PROBLEM).value == -1.0


def test_a_gate_may_open_lower_and_a_skipped_one_is_closed() -> None:
    def value(gate: str, **more: Any) -> float | None:
        spec = {"use": "gate", "args": {"gate": gate, "reward": "exact_match", **more}}
        return judge(load_reward(spec), BARE, PROBLEM).value

    assert (value("p.py:half"), value("p.py:half", at_least=0.5), value("p.py:skips")) == (0.0, 1.0, 0.0)


def test_partial_credit_is_off_unless_asked_for() -> None:
    parts = {"code": {"reward": "p.py:half"}, "form": {"reward": "format", "weight": 0.1}}
    score = judge(weighted(parts), GOOD, PROBLEM)
    assert (score.value, score.correct, score.parts) == (0.1, False, {"code": 0.5, "form": 1.0})
    assert judge(weighted(parts, partial=True), GOOD, PROBLEM).value == pytest.approx(0.6)
    minus = weighted({"answer": {"reward": "p.py:minus", "weight": 2}})
    assert judge(minus, GOOD, PROBLEM).value == -2.0  # a punishment is no credit


@pytest.mark.parametrize("broken", ["raises", "nan"])
def test_a_part_in_error_makes_the_whole_an_error(broken: str) -> None:
    score = judge(both(broken), GOOD, PROBLEM)
    assert (score.value, score.correct, score.status, score.parts) == (None, False, "error", {"answer": 1.0})
    assert score.detail.startswith("other: ")


def test_a_rejected_part_makes_the_whole_rejected() -> None:
    score = judge(both("rejects"), GOOD, PROBLEM)
    assert (score.value, score.correct, score.status) == (0.0, False, "rejected")
    assert score.detail == "other: a bomb"


@pytest.mark.parametrize(("name", "error"), [("bloats", MemoryError), ("deep", RecursionError)])
def test_a_limit_that_a_part_hits_is_for_the_pool(name: str, error: type[BaseException]) -> None:
    with pytest.raises(error):
        judge(both(name), GOOD, PROBLEM)


def test_a_skipped_part_is_left_out_and_a_skipped_primary_skips() -> None:
    score = judge(both("skips"), GOOD, PROBLEM)
    assert (score.value, score.correct, score.parts) == (1.0, True, {"answer": 1.0})
    score = judge(both("skips", primary="other"), GOOD, PROBLEM)
    assert (score.value, score.correct, score.status, score.parts) == (None, False, "skipped", {"answer": 1.0})


def test_async_parts_share_one_loop() -> None:
    parts = {name: {"reward": "p.py:later"} for name in ("a", "b")}
    reward = weighted(parts)
    assert judge(reward, GOOD, PROBLEM).value == 2.0
    assert judge(reward, "5", PROBLEM).value == 0.0
    loops = reward._parts["a"].__globals__["loops"]
    assert len(set(map(id, loops))) == 1


def test_trl_parts_and_parts_with_extras_get_what_they_ask_for() -> None:
    parts = {"trl": {"reward": "p.py:trl"}, "step": {"reward": "p.py:extra", "weight": 10}}
    score = judge(weighted(parts), GOOD, PROBLEM, extras=Extras(step=3))
    assert (score.value, score.parts) == (31.0, {"trl": 1.0, "step": 3.0, "trl/size": len(GOOD)})


def test_a_chain_cut_by_the_cap_goes_to_the_parts_that_judge_it() -> None:
    punish = {"use": "overlong", "args": {"max_tokens": 100, "cache": 20}}
    reward = weighted({"answer": {"reward": "exact_match"}, "length": {"reward": punish, "weight": 0.5}})
    score = judge(reward, r"\boxed{4} and", PROBLEM, truncated=True, extras=Extras(thinking_tokens=100))
    assert (score.value, score.correct, score.status) == (-0.5, False, "truncated")
    assert score.parts == {"answer": 0.0, "length": -1.0}
    assert not weighted().scores_truncated
    assert judge(weighted(), "4", PROBLEM, truncated=True) == Score(
        0.0, False, "truncated", detail="cut by the length cap"
    )


def test_composed_rewards_compose() -> None:
    inner = {"use": "gate", "args": {"gate": "format", "reward": "exact_match"}}
    punish = {"use": "overlong", "args": {"max_tokens": 100, "cache": 20}}
    reward = weighted({"main": {"reward": inner}, "length": {"reward": punish}})
    score = judge(reward, GOOD, PROBLEM, extras=Extras(thinking_tokens=90))
    assert (score.value, score.correct) == (0.5, True)
    assert score.parts == {"main": 1.0, "length": -0.5, "main/gate": 1.0, "main/reward": 1.0}
    cut = judge(reward, GOOD, PROBLEM, truncated=True, extras=Extras(thinking_tokens=100))
    assert (cut.value, cut.correct, cut.status) == (-1.0, False, "truncated")


@pytest.mark.parametrize(
    ("parts", "more", "message"),
    [
        ({}, {}, "primary"),
        ({"a": {"weight": 1}}, {}, "reward"),
        ({"a": {"reward": "exact_match", "wieght": 1}}, {}, "wieght"),
        ({"a": {"reward": "exact_match", "weight": "much"}}, {}, "much"),
        ({"a": {"reward": "exact_match", "weight": math.nan}}, {}, "finite"),
        ({"a": {"reward": "exact_match", "weight": math.inf}}, {}, "finite"),
        ({"a": {"reward": "exact_match"}}, {"primary": "b"}, "did you mean|known"),
        ({"a": {"reward": "exakt_match"}}, {}, "exact_match"),
        ({"a": "exact_match"}, {}, "mapping"),
        ("exact_match", {}, "weighted takes"),
    ],
)
def test_parts_that_make_no_sense_are_bad_input(parts: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        weighted(parts, **more)
    assert "\n" not in str(caught.value)


def test_what_parts_ask_of_the_pool_the_whole_asks() -> None:
    assert weighted().item_limit is None
    whole = both("slow")
    assert whole.item_limit == 4.0
    whole.warm_up()
    assert whole._parts["other"].__globals__["loops"] == ["warm"]


VALUES = st.lists(st.floats(-10, 10), min_size=1, max_size=5)


@given(VALUES, st.data())
def test_the_value_is_the_weighted_sum_and_correct_the_primarys(values: list[float], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(-10, 10), min_size=len(values), max_size=len(values)))
    primary = data.draw(st.integers(0, len(values) - 1))
    parts = {
        str(k): {"reward": lambda response, problem, v=v: v, "weight": w}
        for k, (v, w) in enumerate(zip(values, weights, strict=True))
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compose, "load_reward", lambda function: function)
        whole, strict = (compose.weighted(parts, str(primary), partial) for partial in (True, False))
    total = sum(v * w for v, w in zip(values, weights, strict=True))
    score = judge(whole, "x", PROBLEM)
    assert score.value == pytest.approx(total, abs=1e-9)
    assert score.parts == {str(k): v for k, v in enumerate(values)}
    assert score.correct == (values[primary] >= 1)
    lost = 0.0 if values[primary] >= 1 else max(0.0, values[primary]) * weights[primary]
    assert judge(strict, "x", PROBLEM).value == pytest.approx(total - lost, abs=1e-9)


async def test_the_pool_runs_composed_rewards() -> None:
    spec = {"use": "rewards.compose:weighted", "args": {"parts": {**ANSWER_AND_FORM, "late": {"reward": "p.py:later"}}}}
    async with RewardPool(workers=1) as pool:
        scores = await asyncio.gather(*(pool.score(str(n), GOOD, PROBLEM, spec) for n in range(3)))
    assert [score.value for score in scores] == [2.25] * 3
    assert scores[0].parts == {"answer": 1.0, "form": 1.0, "late": 1.0}
