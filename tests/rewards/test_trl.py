"""TRL's own rewards, called through ours and directly: the same numbers, one completion at a time or in a batch."""

from __future__ import annotations

from typing import Any

import pytest

from rewards.errors import BadInput
from rewards.registry import judge, load_reward
from rewards.types import Extras, Problem, Score

trl_rewards = pytest.importorskip("trl.rewards")

PLAIN = ("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward")
FACTORIES: dict[str, dict[str, Any]] = {
    "get_cosine_scaled_reward": {"max_len": 8},
    "get_repetition_penalty_reward": {"ngram_size": 2, "max_penalty": -0.5},
    "get_soft_overlong_punishment": {"max_completion_len": 6, "soft_punish_cache": 4},
}
RESPONSES = [
    "<think>\n1 + 1\n</think>\nIt is \\boxed{\\frac{1}{2}}.",
    "<think>\n1 + 1\n</think>\nIt is \\boxed{0.5}.",
    "It is \\boxed{\\frac{1}{3}}.",
    "<think>\nIt is \\boxed{\\frac{1}{2}}.",
    "1/2",
    "",
]
IDS = [[1], [1, 1, 1], [1, 2, 1, 2], [1, 2, 3, 4, 5], [7] * 7, []]


def spec_of(name: str) -> Any:
    return f"trl.rewards:{name}" if name in PLAIN else {"use": f"trl.rewards:{name}", "args": FACTORIES[name]}


def problem(solution: str = "\\frac{1}{2}", **meta: Any) -> Problem:
    prompt = [{"role": "user", "content": "Half of one?"}]
    return Problem("p", "t", prompt, "1/2", "k", meta={"solution": solution, **meta})


def direct(name: str, solution: str) -> list[float | None]:
    """As GRPOTrainer calls it: keyword arguments, columns as lists, message lists since the prompt is chat."""
    function = getattr(trl_rewards, name)
    function = function if name in PLAIN else function(**FACTORIES[name])
    columns = {"solution": [solution] * len(RESPONSES), "answer": ["1/2"] * len(RESPONSES)}
    completions = [[{"role": "assistant", "content": text}] for text in RESPONSES]
    values = function(
        prompts=[problem().prompt] * len(RESPONSES), completions=completions, completion_ids=IDS,
        trainer_state=None, log_extra=lambda *_: None, log_metric=lambda *_: None, **columns,
    )  # fmt: skip
    return list(values)


def test_every_reward_of_the_library_is_tried() -> None:
    names = {name for names in trl_rewards._import_structure.values() for name in names}
    assert names == {*PLAIN, *FACTORIES}


@pytest.mark.parametrize("solution", ["\\frac{1}{2}", ""])
@pytest.mark.parametrize("name", [*PLAIN, *FACTORIES])
def test_scores_are_the_librarys_own(name: str, solution: str) -> None:
    reward = load_reward(spec_of(name))
    given = zip(RESPONSES, IDS, strict=True)
    scores = [judge(reward, text, problem(solution), extras=Extras(ids, step=3)) for text, ids in given]
    assert [score.value for score in scores] == direct(name, solution)
    assert all((score.status == "skipped") == (score.value is None) for score in scores)


def test_the_librarys_own_numbers() -> None:
    """So that the test above can't pass on two wrong sides."""
    assert direct("accuracy_reward", "\\frac{1}{2}") == [1, 1, 0, 1, 0, 0]
    assert direct("accuracy_reward", "") == [None] * 6
    assert direct("think_format_reward", "") == [1, 1, 0, 0, 0, 0]
    assert direct("get_soft_overlong_punishment", "") == [0, -0.25, -0.5, -0.75, -1, 0]


@pytest.mark.parametrize("name", FACTORIES)
def test_token_ids_come_from_the_row_or_are_asked_for(name: str) -> None:
    reward = load_reward(spec_of(name))
    row = problem(completion_ids=IDS[3])
    assert judge(reward, RESPONSES[3], row).value == direct(name, "\\frac{1}{2}")[3]
    with pytest.raises(BadInput, match=rf"{name}.* needs completion_ids: add the field to problem 'p'"):
        judge(reward, RESPONSES[0], problem())


def test_lengths_are_measured_on_chains_that_were_cut_too() -> None:
    overlong = load_reward(spec_of("get_soft_overlong_punishment"))
    assert judge(overlong, "", problem(), truncated=True, extras=Extras([7] * 7)) == Score(-1.0, False, "wrong")
    accuracy = load_reward(spec_of("accuracy_reward"))
    assert judge(accuracy, RESPONSES[0], problem(), truncated=True).status == "truncated"


def test_a_factory_that_is_named_as_a_reward_says_so() -> None:
    score = judge(load_reward("trl.rewards:get_soft_overlong_punishment"), "", problem())
    assert (score.status, "{use: …, args: {…}}" in score.detail) == ("error", True)


def test_text_prompts_get_strings_as_in_trl() -> None:
    text = Problem("p", "t", "Half of one?", "1/2", "k", meta={"solution": "\\frac{1}{2}"})
    score = judge(load_reward("trl.rewards:accuracy_reward"), RESPONSES[0], text)
    assert (score.status, score.value) == ("error", None)
    assert "string indices" in score.detail
