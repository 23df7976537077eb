from __future__ import annotations

import json
from collections import Counter
from itertools import combinations_with_replacement, permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.errors import BadInput
from rewards.registry import judge, load_reward
from rewards.tasks import GENERATORS, base, list_tasks, load_task, source_of
from rewards.tasks.base import CYCLE, SPLITS, Mixture, shares, split_of
from rewards.tasks.rows import read_jsonl

SPECS = [
    *(f"countdown?numbers={n}&style={style}" for n in (2, 3, 4, 5, 6) for style in ("words", "plain")),
    *(f"arithmetic?operations={n}&style={style}" for n in (1, 3, 6) for style in ("words", "plain")),
    "countdown",
    "arithmetic",
    "letters",
]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"id": f"r{k}", "prompt": f"{k} + 1?", "answer": str(k + 1), **more} for k in range(count)]


@pytest.mark.parametrize("spec", SPECS)
def test_gold_is_correct_and_splits_are_by_content(spec: str) -> None:
    task = load_task(spec)
    reward = load_reward(task.reward)
    for split in SPLITS:
        for index in range(8):
            problem = task.problem(index, split)
            assert split_of(problem.task, problem.key) == split
            assert judge(reward, task.gold(problem), problem).correct, problem
            assert judge(reward, f"<think>hm</think>{task.gold(problem)}", problem).correct or spec == "letters"


@pytest.mark.parametrize("spec", ["countdown", "arithmetic", "letters"])
def test_a_problem_is_a_pure_function_of_seed_index_and_split(spec: str) -> None:
    forward = [load_task(spec, seed=3).problem(i, "train") for i in range(20)]
    task = load_task(spec, seed=3)
    assert [task.problem(i, "train") for i in reversed(range(20))] == forward[::-1]
    assert len({p.id for p in forward}) == 20
    assert [load_task(spec, seed=4).problem(i, "train") for i in range(20)] != forward
    assert task.size("test") is None


def test_known_problems_stay_as_they_are() -> None:
    """A change here changes every run's problems: it must be on purpose."""
    problem = load_task("countdown?numbers=3", seed=0).problem(0, "test")
    assert (problem.prompt, problem.key) == ("3 8 12 : 36", "3,8,12=36")
    assert [split_of("countdown", str(k)) for k in range(6)] == ["train", "train", "val", "val", "train", "train"]


def countdown_keys() -> set[str]:
    """Every three-number problem by brute force: 1-15, targets 1-99, steps 0-199."""
    keys = set()
    apply = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}.values()
    for numbers in combinations_with_replacement(range(1, 16), 3):
        for a, b, c in set(permutations(numbers)):
            for x in (f(a, b) for f in apply):
                for y in (z for g in apply for z in (g(x, c), g(c, x)) if 0 <= x <= 199):
                    if 1 <= y <= 99:
                        keys.add(f"{','.join(map(str, numbers))}={y}")
    return keys


def test_splits_are_disjoint_and_cover_the_enumeration() -> None:
    every = countdown_keys()
    assert len(every) == 6844
    shares = Counter(split_of("countdown", key) for key in every)
    assert shares["test"] == pytest.approx(684, abs=80)
    assert shares["val"] == pytest.approx(684, abs=80)
    task = load_task("countdown?numbers=3")
    drawn = {split: {task.problem(i, split).key for i in range(300)} for split in SPLITS}
    assert set.union(*drawn.values()) <= every
    assert not drawn["train"] & drawn["test"]
    assert not drawn["train"] & drawn["val"]
    assert not drawn["val"] & drawn["test"]


def test_parameters_do_not_move_content_between_splits() -> None:
    plain = {load_task("countdown?numbers=3&style=plain").problem(i, "train").key for i in range(300)}
    words = {load_task("countdown").problem(i, "test").key for i in range(300)}
    assert not plain & words


def test_countdown_problems_look_as_documented() -> None:
    task = load_task("countdown?numbers=4&max_number=9&max_target=50")
    for index in range(50):
        problem = task.problem(index, "train")
        left, target = problem.prompt.split(" : ")  # type: ignore[union-attr]
        assert problem.meta == {"numbers": [int(n) for n in left.split()], "target": int(target)}
        assert problem.difficulty == len(problem.meta["numbers"]) == 4
        assert max(problem.meta["numbers"]) <= 9
        assert 1 <= problem.meta["target"] <= 50


def test_default_countdown_holds_all_counts() -> None:
    counts = Counter(load_task("countdown").problem(i, "train").difficulty for i in range(300))
    assert set(counts) == {3.0, 4.0, 5.0}
    assert min(counts.values()) > 60


def test_arithmetic_prompt_works_out_to_the_answer() -> None:
    task = load_task("arithmetic")
    for index in range(100):
        problem = task.problem(index, "val")
        assert str(eval(str(problem.prompt).removesuffix("="))) == problem.answer  # of our own making
        assert str(problem.prompt).count(" + ") + str(problem.prompt).count(" - ") <= problem.difficulty


def test_letters_has_thousands_of_prompts() -> None:
    task = load_task("letters")
    assert len({task.problem(i, "train").prompt for i in range(2500)}) > 2000


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("contdown", "'countdown'"),
        ("nope", "known: arithmetic"),
        ("countdown?nmbers=3", "'numbers'"),
        ("countdown?numbers=x", "range like 3-5"),
        ("countdown?numbers=9", "2 to 6"),
        ("countdown?numbers=5-3", "2 to 6"),
        ("countdown?max_target=3-5", "not a number"),
        ("countdown?style=prose", "words, plain"),
        ("countdown?numbers", "key=value"),
        ("countdown?", "key=value"),
        ("countdown?numbers=3&numbers=4", "twice"),
        ("letters?x=1", "unknown parameter"),
        ("nope.jsonl", "no such file"),
        ("nope.jsonl?x=1", "no parameters"),
        ([], "empty mixture"),
        (["countdown"], "{task: NAME"),
        ([{"task": "countdown", "wait": 1}], "'weight'"),
        ([{"task": "countdown", "weight": 0}], "positive"),
        ([{"task": "countdown", "weight": True}], "positive"),
        ([{"task": "countdown"}, {"task": "countdown"}], "twice"),
    ],
)
def test_bad_specs_are_refused_in_one_line(spec: Any, words: str) -> None:
    with pytest.raises(BadInput) as error:
        load_task(spec)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_generator_without_problems_in_a_split_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MAX_DRAWS", 200)
    task = load_task("countdown?numbers=2&max_number=3&max_target=1")
    held = {split_of("countdown", key) for key in ("1,1=1", "1,2=1", "2,3=1")}  # all there is
    with pytest.raises(BadInput, match="widen its parameters"):
        task.problem(0, next(split for split in SPLITS if split not in held))


def test_list_tasks_names_every_parameter() -> None:
    listed = {row["name"]: row for row in list_tasks()}
    assert {name for name in listed if not name.startswith("gym:")} == set(GENERATORS)
    assert listed["countdown"]["parameters"]["numbers"]["default"] == "3-5"
    assert all(row["description"] and row["reward"] for row in listed.values())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"id":"a","prompt":"1+1?","answer":"2"}\nnot json\n', "f.jsonl:2: broken JSON"),
        ('{"id":"a","prompt":"x","answer":"2"}\n\n{"id":"a","prompt":"y","answer":"3"}\n', "lines 1 and 3"),
        ('{"answer":"2"}', "f.jsonl:1: no prompt"),
        ('{"prompt":7,"answer":"2"}', "prompt '7'"),
        ('{"prompt":[{"role":"user"}],"answer":"2"}', "messages"),
        ('{"prompt":" ","answer":"2"}', "prompt"),
        ('{"prompt":"x"}', "no answer"),
        ('{"prompt":"x","answer":null}', "no answer"),
        ('{"prompt":"x","answer":1,"split":"tset"}', "'test'"),
        ('{"prompt":"x","answer":1,"difficulty":"hard"}', "not a number"),
        ('{"prompt":"x","answer":1,"reward":3}', "reward 3"),
        ("[1]", "list instead of an object"),
        ("", "no rows"),
        ("[" * 100_000, "broken JSON"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "f.jsonl"
    file.write_text(text)
    with pytest.raises(BadInput) as error:
        load_task(str(file))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    file = tmp_path / "f.jsonl"
    file.write_bytes(b'{"prompt":"x","answer":1}\n\xff\xfe\n')
    with pytest.raises(BadInput, match=r"f\.jsonl:2"):
        load_task(str(file))


def test_every_field_of_a_row_arrives(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "1  + 1"}]
    row = {
        "id": 7, "prompt": chat, "answer": [2], "difficulty": 3, "subtask": "sums", "split": "val",
        "reward": "countdown", "source": "me", "gold": "two",
    }  # fmt: skip
    task = read_jsonl(write(tmp_path / "f.jsonl", [row]))
    problem = task.problem(0, "val")
    assert (problem.id, problem.task, problem.prompt, problem.answer) == ("7", "f", chat, [2])
    assert (problem.difficulty, problem.subtask, problem.reward) == (3.0, "sums", "countdown")
    assert problem.key == "user: 1 + 1"
    assert problem.meta == {"source": "me", "gold": "two"}
    assert task.gold(problem) == "two"
    assert task.rewards == ["countdown"]


def test_a_byte_order_mark_and_missing_ids_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "f.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"prompt":"x","answer":1,"split":"test","id":null}\r\n')
    assert load_task(str(file)).problem(0, "test").id == "f:1"


def test_jsonl_splits_by_content_whatever_the_file_is_called(tmp_path: Path) -> None:
    data = rows(200)
    one, two = read_jsonl(write(tmp_path / "a.jsonl", data)), read_jsonl(write(tmp_path / "b.jsonl", data[::-1]))
    for split in SPLITS:
        size = one.size(split)
        assert size > 0
        assert {one.problem(i, split).key for i in range(size)} == {two.problem(i, split).key for i in range(size)}
    assert sum(one.size(split) for split in SPLITS) == 200
    assert one.dropped == 0


def test_a_train_row_whose_content_is_held_out_is_dropped_and_counted(tmp_path: Path) -> None:
    data = [
        {"prompt": "a  b", "answer": 1, "split": "train"},
        {"prompt": "a b", "answer": 1, "split": "test"},
        {"prompt": "c", "answer": 1, "split": "train"},
        {"prompt": "c", "answer": 1, "split": "val"},
        {"prompt": "d", "answer": 1, "split": "train", "key": "D"},
        {"prompt": "d", "answer": 1, "split": "val", "key": "other"},
    ]
    task = read_jsonl(write(tmp_path / "f.jsonl", data))
    assert (task.size("train"), task.size("val"), task.size("test"), task.dropped) == (1, 2, 1, 2)


def test_train_wraps_with_a_new_order_each_pass(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", rows(30, split="train"))
    task = read_jsonl(path, seed=1)
    first, second = ([task.problem(i, "train") for i in range(start, start + 30)] for start in (0, 30))
    assert {p.key for p in first} == {p.key for p in second}
    assert [p.key for p in first] != [p.key for p in second]
    assert len({p.id for p in first + second}) == 60
    assert second[0].id.endswith("@2")
    assert read_jsonl(path, seed=1).problem(37, "train") == second[7]
    assert [read_jsonl(path, seed=2).problem(i, "train") for i in range(30)] != first


def test_an_empty_split_and_an_index_past_the_end_name_the_fix(tmp_path: Path) -> None:
    task = read_jsonl(
        write(tmp_path / "f.jsonl", [*rows(3, split="train"), {"prompt": "t", "answer": 1, "split": "test"}])
    )
    assert task.size("val") == 0
    with pytest.raises(BadInput, match='"split": "val"'):
        task.problem(0, "val")
    with pytest.raises(BadInput, match="1 test rows, not 2"):
        task.problem(1, "test")


@pytest.mark.parametrize("answer", ["4", 4, 0.5, "a {brace", r"\frac{1}{2}", [1, 2], "New York"])
def test_gold_of_a_row_is_correct(tmp_path: Path, answer: Any) -> None:
    task = read_jsonl(write(tmp_path / "f.jsonl", [{"prompt": "x", "answer": answer, "split": "train"}]))
    problem = task.problem(0, "train")
    assert judge(load_reward(problem.reward), task.gold(problem), problem).correct


def test_a_mixture_keeps_exact_shares_and_passes_rows_in_turn(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", rows(20, split="train"))
    task = load_task([{"task": "countdown?numbers=3", "weight": 3}, {"task": path, "weight": 1}], seed=5)
    problems = [task.problem(i, "train") for i in range(CYCLE)]
    assert Counter(p.task for p in problems) == {"countdown": 750, "f": 250}
    assert len({p.id for p in problems}) == CYCLE
    assert Counter(p.key for p in problems if p.task == "f").most_common()[-1][1] == 12  # 250 = 12.5 passes over 20
    assert task.problem(CYCLE + 3, "train") == load_task(
        [{"task": "countdown?numbers=3", "weight": 3}, {"task": path, "weight": 1}], seed=5
    ).problem(CYCLE + 3, "train")
    assert task.rewards == ["countdown", "exact_match"]
    assert task.size("train") is None


def test_a_mixture_leaves_out_tasks_without_the_split(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", rows(5, split="train"))
    task = load_task([{"task": path}, {"task": "letters"}])
    assert {task.problem(i, "val").task for i in range(50)} == {"letters"}
    assert task.size("val") is None
    alone = load_task([{"task": path}])
    assert (alone.size("val"), alone.size("train")) == (0, 5)
    with pytest.raises(BadInput, match="no val problems"):
        alone.problem(0, "val")


def test_a_mixture_ends_where_its_first_file_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", rows(5, split="test"))
    task = load_task([{"task": path}, {"task": "letters"}])
    size = task.size("test")
    assert size is not None
    assert Counter(task.problem(i, "test").task for i in range(size))["f"] == 5
    with pytest.raises(BadInput, match="ask for fewer"):
        task.problem(size, "test")


def test_a_mixture_asks_the_right_task_for_gold(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", rows(5, split="train"))
    entries = ["countdown", "countdown?numbers=3&style=plain", path]
    task = load_task([{"task": entry} for entry in entries])
    for index in range(60):
        problem = task.problem(index, "train")
        assert judge(load_reward(problem.reward), task.gold(problem), problem).correct
        plain = isinstance(problem.prompt, str) and problem.prompt.startswith("Using")
        assert task.gold(problem).startswith("<answer>") == plain
        assert source_of(task, problem) == (path if "f.jsonl" in problem.id else entries[plain])
    assert source_of(load_task(path), load_task(path).problem(0, "train")) == path
    assert isinstance(task, Mixture)
    with pytest.raises(KeyError):
        task.gold(load_task("letters").problem(0, "train"))


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30))
def test_shares_add_up_and_leave_nobody_out(weights: list[float]) -> None:
    whole = shares(weights)
    assert sum(whole) == CYCLE
    assert min(whole) >= 1
