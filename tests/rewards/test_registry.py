from __future__ import annotations

import asyncio
import math
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from rewards import registry
from rewards.errors import BadInput
from rewards.registry import BUILT_IN, TrlReward, judge, list_rewards, load_reward
from rewards.types import Extras, Problem, Score

TEXT = Problem("p", "t", "2+2?", "4", "k", meta={"solution": "four"})
CHAT = Problem("p", "t", [{"role": "user", "content": "2+2?"}], "4", "k")

PLUGIN = """
import neighbour
def good(response, problem): return response == problem.answer
def factory(bonus=0.0): return lambda response, problem: bonus
def trl(completions, **columns): return [1.0 for _ in completions]
def trl_too(prompts=None, completion_ids=None, **columns): return []
def one(x): return 1.0
async def slow(response, problem): return 0.5
value = 3
class Made:
    def __init__(self, bonus=0.75): self.bonus = bonus
    def __call__(self, response, problem): return self.bonus
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "neighbour.py").write_text("")
    (tmp_path / "my_plugin.py").write_text(PLUGIN)
    (tmp_path / "broken_plugin.py").write_text("import no_such_dependency")
    (tmp_path / "crashing_plugin.py").write_text("1 / 0")
    for name in ("neighbour", "my_plugin", "broken_plugin", "crashing_plugin"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return "my_plugin"


def verdict(reward: Any, response: str = "4", problem: Problem = TEXT, **more: Any) -> Score:
    return judge(reward, response, problem, **more)


def test_every_built_in_loads_and_is_listed() -> None:
    names = [row["name"] for row in list_rewards()]
    assert set(BUILT_IN) <= set(names)
    assert all(callable(load_reward(name)) for name in BUILT_IN if name != "code")  # it needs a sandbox: test_code.py
    assert {"name": "countdown", "source": "built in (rewards.countdown:countdown)"} in list_rewards()


@pytest.mark.parametrize("place", ["my_plugin", "my_plugin.py", "{dir}/my_plugin.py"])
def test_functions_of_modules_and_files(plugin: str, tmp_path: Path, place: str) -> None:
    spec = f"{place.format(dir=tmp_path)}:good"
    assert verdict(load_reward(spec)) == Score(1.0, True, "ok")
    assert verdict(load_reward(spec), "5") == Score(0.0, False, "wrong")
    assert isinstance(load_reward(f"{place.format(dir=tmp_path)}:trl"), TrlReward)


def test_a_factory_takes_its_arguments(plugin: str) -> None:
    assert verdict(load_reward({"use": "my_plugin:factory", "args": {"bonus": 0.25}})).value == 0.25
    assert verdict(load_reward({"use": "my_plugin.py:factory"})).value == 0.0


def test_a_class_is_a_factory_that_may_be_named_alone(plugin: str) -> None:
    assert verdict(load_reward("my_plugin:Made")).value == 0.75
    assert verdict(load_reward({"use": "my_plugin:Made", "args": {"bonus": 0.5}})).value == 0.5


def test_an_entry_point_is_found_by_name_and_listed(plugin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("mine", "my_plugin:good", "ponder.rewards"),
        EntryPoint("bad", "broken_plugin:f", "ponder.rewards"),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    assert verdict(load_reward("mine")).correct
    assert {"name": "mine", "source": "an entry point (my_plugin:good)"} in list_rewards()
    with pytest.raises(BadInput, match=r"'mine'"):
        load_reward("mien")
    with pytest.raises(BadInput, match="no_such_dependency"):
        load_reward("bad")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("countdwn", "did you mean 'countdown'"),
        ("nope", "unknown reward 'nope'; known: choice, "),
        ("no.such:thing", "no module 'no.such'"),
        ("my_plugin:god", "did you mean 'good'"),
        ("my_plugin:zzzz", "known: factory, good, one, slow, trl, trl_too"),
        ("none.py:f", "no file 'none.py'"),
        ("broken_plugin:f", "ModuleNotFoundError: No module named 'no_such_dependency'"),
        ("broken_plugin.py:f", "no_such_dependency"),
        ("crashing_plugin:f", "ZeroDivisionError"),
        ("rewards:f", "no function 'f' in rewards; known: none"),
        ("my_plugin:value", "is a int, not a function"),
        ("my_plugin:one", "(response, problem)"),
        ({"use": "my_plugin:factory", "args": {"bonsu": 1}}, "bonsu"),
        ({"uses": "my_plugin:factory"}, "{use: module:function"),
        ({"use": "my_plugin:factory", "arg": {}}, "{use: module:function"),
        (7, "neither a name nor"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_line(plugin: str, spec: Any, words: str) -> None:
    with pytest.raises(BadInput) as error:
        load_reward(spec)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_a_package_of_ours_hides_is_named(plugin: str, tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("def f(response, problem): return 1.0")
    with pytest.raises(BadInput, match=r"your file is rewards\.py:f"):
        load_reward("rewards:f")
    assert verdict(load_reward("rewards.py:f")).correct


@pytest.mark.parametrize(
    ("result", "score"),
    [
        (True, Score(1.0, True, "ok")),
        (False, Score(0.0, False, "wrong")),
        (1, Score(1.0, True, "ok")),
        (0.5, Score(0.5, False, "wrong")),
        (2.5, Score(2.5, True, "ok")),
        (-1.0, Score(-1.0, False, "wrong")),
        (None, Score(None, False, "skipped")),
        (Score(0.3, True, "ok", {"a": 1}), Score(0.3, True, "ok", {"a": 1.0})),
        (Score(None, False, "skipped"), Score(None, False, "skipped")),
    ],
)
def test_what_results_mean(result: Any, score: Score) -> None:
    assert verdict(lambda response, problem: result) == score


@pytest.mark.parametrize(
    "result",
    [
        math.nan,
        math.inf,
        -math.inf,
        "1.0",
        [1.0],
        1j,
        Score(math.nan, False, "ok"),
        Score(1.0, True, "great"),  # type: ignore[arg-type]
        Score(None, True, "ok"),
        Score(1.0, True, "ok", {"a": math.inf}),
    ],
)
def test_what_is_no_verdict_is_an_error_without_a_value(result: Any) -> None:
    score = verdict(lambda response, problem: result)
    assert (score.value, score.correct, score.status) == (None, False, "error")
    assert score.detail.startswith("returned")


def test_scalars_of_numpy_are_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    assert verdict(lambda response, problem: numpy.float32(0.5)).value == 0.5
    assert verdict(lambda response, problem: numpy.bool_(True)) == Score(1.0, True, "ok")


def test_an_exception_is_an_error_that_names_it() -> None:
    def bad(response: str, problem: Problem) -> float:
        raise ValueError("boom\n" * 1000)

    score = verdict(bad)
    assert score.status == "error"
    assert score.detail.startswith("ValueError: boom boom")
    assert len(score.detail) <= 500


@pytest.mark.parametrize("limit", [MemoryError, RecursionError])
def test_limits_are_left_to_the_pool(limit: type[Exception]) -> None:
    def bomb(response: str, problem: Problem) -> float:
        raise limit

    with pytest.raises(limit):
        verdict(bomb)


def test_a_cut_chain_is_not_judged_unless_the_reward_can() -> None:
    calls = []

    def reward(response: str, problem: Problem) -> bool:
        calls.append(response)
        return True

    assert verdict(reward, truncated=True) == Score(0.0, False, "truncated", detail="cut by the length cap")
    assert not calls
    reward.scores_truncated = True  # type: ignore[attr-defined]
    assert verdict(reward, truncated=True).correct


def test_async_rewards_are_awaited(plugin: str) -> None:
    assert verdict(load_reward("my_plugin:slow")).value == 0.5


def test_trl_style_is_told_by_parameter_names(plugin: str) -> None:
    assert isinstance(load_reward("my_plugin:trl"), TrlReward)
    assert isinstance(load_reward("my_plugin:trl_too"), TrlReward)
    assert not isinstance(load_reward("my_plugin:good"), TrlReward)
    assert load_reward("builtins:max") is max


def test_trl_style_gets_what_trl_passes() -> None:
    seen: dict[str, Any] = {}

    def reward(prompts: Any, completions: Any, completion_ids: Any, trainer_state: Any, **columns: Any) -> list[float]:
        seen.update(columns, prompts=prompts, completions=completions, ids=completion_ids, state=trainer_state)
        columns["log_metric"]("length", 3)
        columns["log_extra"]("parsed", ["four"])
        return [1.0]

    score = verdict(TrlReward(reward, "r"), extras=Extras([5, 6], step=9))
    assert (seen["prompts"], seen["completions"], seen["ids"]) == (["2+2?"], ["4"], [[5, 6]])
    assert (seen["answer"], seen["solution"], seen["state"].global_step) == (["4"], ["four"], 9)
    assert score == Score(1.0, True, "ok", {"length": 3.0}, detail="parsed: four")
    verdict(TrlReward(reward, "r"), problem=CHAT, extras=Extras([]))
    assert seen["prompts"] == [CHAT.prompt]
    assert seen["completions"] == [[{"role": "assistant", "content": "4"}]]
    assert seen["ids"] == [[]]


def test_trl_style_without_kwargs_gets_what_it_names() -> None:
    assert verdict(TrlReward(lambda completions, answer: [float(completions == answer)], "r")).correct


@pytest.mark.parametrize(
    ("results", "status"),
    [
        ([None], "skipped"),
        ([0.0], "wrong"),
        ([], "error"),
        ([1.0, 1.0], "error"),
        (1.0, "error"),
        ([math.nan], "error"),
    ],
)
def test_trl_results_are_unwrapped(results: Any, status: str) -> None:
    assert verdict(TrlReward(lambda completions, **columns: results, "r")).status == status


def test_async_trl_style() -> None:
    async def reward(completions: list[str], **columns: Any) -> list[float]:
        await asyncio.sleep(0)
        return [0.5]

    assert verdict(TrlReward(reward, "r")).value == 0.5
    assert asyncio.run(TrlReward(reward, "r")("4", TEXT)).value == 0.5


def test_missing_completion_ids_are_named() -> None:
    reward = TrlReward(lambda completions, completion_ids, **columns: [1.0], "mine")
    with pytest.raises(BadInput, match="mine needs completion_ids"):
        verdict(reward)
    row = Problem("p", "t", "", "4", "k", meta={"completion_ids": [1]})
    assert verdict(reward, problem=row).correct


def test_a_missing_column_is_an_error() -> None:
    assert "solutions" in verdict(TrlReward(lambda completions, solutions, **columns: [1.0], "r")).detail
