"""Crosswords and poems: any answer that keeps the rules is right, and no other."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from rewards import table
from rewards.tasks import load_task
from rewards.tasks.constraint import crossword, fill, poem, rhymes, slots, syllables
from rewards.types import Problem, Score, Split

RING = ["...", ".#.", "..."]
WORDS = ["cat", "cow", "ten", "wan", "tan", "won", "cot", "nut"]


def asked(**meta: Any) -> Problem:
    return Problem("p", "t", "?", "?", "?", meta=meta)


def filled(text: str) -> Score:
    return crossword(f"<answer>\n{text}\n</answer>", asked(grid=RING, words=WORDS))


def test_the_entries_of_a_grid_are_its_runs_of_two_cells_or_more() -> None:
    assert slots(["..#", "#.#"]) == [((0, 0), (0, 1)), ((0, 1), (1, 1))]
    assert [len(slot) for slot in slots(RING)] == [3, 3, 3, 3]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat\no#e\nwan", True),
        ("CAT\nO # E\nW A N", True),
        ("cat\no#a\nwon", True),  # another filling
        ("cat\no#e\nwax", False),
        ("cat\noxe\nwan", False),
        ("cat\no#e", False),
        ("catx\no#e\nwan", False),
        ("...\n.#.\n...", False),
        ("", False),
    ],
)
def test_any_filling_from_the_list_is_right(text: str, expected: bool) -> None:
    assert filled(text).correct is expected


def test_a_wrong_filling_says_which_entries_are_none() -> None:
    assert filled("cat\no#e\nwax").detail == "tex, wax"
    assert filled("cat").status == "wrong"
    assert crossword("<think>cat", asked(grid=RING, words=WORDS)).status == "unparsed"


def test_a_grid_is_filled_with_different_words_where_that_is_possible() -> None:
    letters = fill(slots(RING), WORDS, {})
    assert letters is not None
    words = ["".join(letters[at] for at in slot) for slot in slots(RING)]
    assert len(set(words)) == 4
    assert set(words) <= set(WORDS)
    assert fill(slots(RING), ["cat", "cow", "ten"], {}) is None


POEM = "the night is near\nno one has fear"


def told(text: str, **rules: Any) -> Score:
    return poem(f"<answer>\n{text}\n</answer>", asked(**{"lines": 2} | rules))


@pytest.mark.parametrize(
    ("text", "rules", "fault"),
    [
        (POEM, {}, ""),
        (POEM, {"words": ["night", "fear"], "acrostic": "tn", "syllables": [4, 4], "rhyme": "AA"}, ""),
        ("The Night, is near!\n\nNo one is here.", {"words": ["night"], "acrostic": "tn"}, ""),
        (POEM, {"lines": 3}, "not 3 lines"),
        (POEM, {"words": ["nigh"]}, "without nigh"),
        (POEM, {"acrostic": "to"}, "first letters are tn"),
        (POEM, {"syllables": [4, 5]}, "has 4 syllables, not 5"),
        ("the night is near\nthe night is near", {}, "repeated"),
        ("the night is near\nThe night,  is near.", {}, "repeated"),
        ("the night is near\nno cat is near", {"rhyme": "AA"}, "do not rhyme"),
        ("the night is near\nno cat is small", {"rhyme": "AA"}, "do not rhyme"),
        ("the night is near\nno cat is small", {"rhyme": "AB"}, ""),
        ("the night is near\nno xqzt is here", {}, "'xqzt' is not in"),
        ("the night is near\n99 birds fly", {}, "'99' is not in"),
        ("night is\nno one is here", {}, "3 words"),
        ("", {}, "no final answer"),
    ],
)
def test_the_first_broken_rule_of_a_poem_is_named(text: str, rules: dict[str, Any], fault: str) -> None:
    score = told(text, **rules)
    assert score.correct is (not fault)
    assert fault in score.detail


def test_a_word_may_be_said_in_several_ways() -> None:
    assert syllables(["fire"]) == {1, 2}
    assert syllables(["the", "xqzt"]) == set()
    assert rhymes(["night", "kite"])
    assert not rhymes(["night", "night"])
    assert not rhymes(["night", "day"])


@pytest.mark.parametrize("name", ["crossword", "poem"])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_generated_problems_are_right_for_their_gold_answer_and_for_no_empty_one(name: str, split: Split) -> None:
    verify = {"crossword": crossword, "poem": poem}[name]
    task = load_task(name, 7)
    problems = [task.problem(index, split) for index in range(8)]
    assert problems[0] == load_task(name, 7).problem(0, split)
    for problem in problems:
        assert verify(task.gold(problem), problem).correct, verify(task.gold(problem), problem).detail
        assert verify(f"<think>hm</think>{problem.answer}", problem).correct
        for text in ("", "<answer></answer>", "x" * 1_000_000, "a b c\n" * 100_000, "\0", "#" * 3000):
            assert not verify(text, problem).correct
    others = pairwise(problems)
    assert sum(verify(task.gold(other), problem).correct for problem, other in others) <= 2


def test_parameters_set_the_size() -> None:
    problem = load_task("poem?lines=3&rules=4").problem(0, "train")
    assert (problem.meta["lines"], problem.difficulty) == (3, 4)
    assert len(load_task("crossword?spare=0").problem(0, "train").meta["words"]) <= 6


def test_the_words_are_words_and_the_grids_are_whole() -> None:
    import pronouncing

    data = table("words")
    assert all(
        isinstance(word, str) and word.isalpha() and word.islower() and clue for word, clue in data["clues"].items()
    )
    assert 150 <= len(data["clues"]) <= 300
    assert not [word for word, clue in data["clues"].items() if word in clue.split()]  # no clue gives its word away
    assert all(len({len(row) for row in grid}) == 1 and set("".join(grid)) <= {".", "#"} for grid in data["grids"])
    words = [
        word for kind in ("openers", "nouns", "verbs", "middles") for entry in data[kind] for word in entry.split()
    ]
    assert not [word for word in words if not pronouncing.phones_for_word(word)]
    assert all(rhymes(family) for family in data["rhymes"])
    assert all(any(opener[0] == letter for opener in data["openers"]) for word in data["acrostics"] for letter in word)
