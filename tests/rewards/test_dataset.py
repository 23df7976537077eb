"""Local data sets: every form that `datasets` reads, splits, columns, GSM8K's and MATH's answers, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rewards.errors import BadInput
from rewards.registry import judge, load_reward
from rewards.tasks import load_task
from rewards.tasks.base import SPLITS
from rewards.types import Split


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    monkeypatch.chdir(tmp_path)


def gsm(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"question": f"What is {i} + 1000?", "answer": f"{i} + 1000 = <<{i}+1000={i + 1000}>>\n#### 1,{i:03}"}
        for i in range(start, start + count)
    ]


def table(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows)


def write_divided(path: Path, **splits: list[dict[str, Any]]) -> str:
    """A directory as the hub lays it out: a parquet file a split."""
    path.mkdir()
    for name, rows in splits.items():
        table(rows).to_parquet(path / f"{name}-00000-of-00001.parquet")
    return f"datasets:{path.name}"


def sizes(spec: str) -> tuple[int | None, ...]:
    task = load_task(spec)
    return tuple(task.size(split) for split in SPLITS)


@pytest.mark.parametrize("form", ["a.parquet", "a.json", "a.csv", "saved", "directory"])
def test_every_local_form_gives_the_same_problems(form: str) -> None:
    rows = table(gsm(40))
    match form:
        case "a.parquet":
            rows.to_parquet(form)
        case "a.json":
            rows.to_json(form)
        case "a.csv":
            rows.to_csv(form)
        case "saved":
            rows.save_to_disk(form)
        case _:
            write_divided(Path(form), train=gsm(40))
    task = load_task(f"datasets:{form}")
    expected = {split: sizes(f"datasets:{form}")[i] for i, split in enumerate(SPLITS)}
    assert sum(size or 0 for size in expected.values()) == 40
    assert all(expected.values())  # not divided: divided by content
    problem = task.problem(0, "test")
    assert problem.answer == f"1,{int(str(problem.prompt).split()[2]):03}"
    assert sizes(f"datasets:{form}?split=test") == (0, 0, 40)


def test_gold_is_the_worked_answer_and_scores() -> None:
    table(gsm(20)).to_parquet("a.parquet")
    task = load_task("datasets:a.parquet?split=test")
    reward = load_reward(task.reward)
    for index in range(20):
        problem = task.problem(index, "test")
        assert problem.id == f"a:{index + 1}"
        assert task.gold(problem) == gsm(20)[index]["answer"]
        assert judge(reward, task.gold(problem), problem).correct
        assert judge(reward, f"The answer is {1000 + index}.", problem).correct
        assert not judge(reward, f"#### {1001 + index}", problem).correct


def test_its_own_splits_stay_and_val_comes_out_of_train_where_there_is_none() -> None:
    write_divided(Path("two"), train=gsm(100), test=gsm(10, 200))
    train, val, test = sizes("datasets:two")
    assert (train, test) == (100 - (val or 0), 10)
    assert 2 <= (val or 0) <= 25
    spec = write_divided(Path("three"), train=gsm(30), validation=gsm(7, 100), test=gsm(9, 200))
    assert sizes(spec) == (30, 7, 9)
    assert sizes(f"{spec}?split=validation")[2] == 7
    assert sum(size or 0 for size in sizes(f"{spec}?split=validation")) == 37
    assert load_task(spec).problem(0, "test").id == "three:test:1"


def test_content_of_test_never_stays_in_train() -> None:
    spec = write_divided(Path("leaky"), train=gsm(30), test=gsm(10, 25))
    task = load_task(spec)
    test = {task.problem(i, "test").key for i in range(10)}
    others: list[Split] = ["train", "val"]
    seen = {task.problem(i, split).key for split in others for i in range(task.size(split) or 0)}
    assert not test & seen
    assert len(seen) == 25


def test_columns_difficulty_and_subtask() -> None:
    rows = [
        {
            "problem": "Half of 1?",
            "solution": "It is $\\boxed{\\frac{1}{2}}$.",
            "level": "Level 3",
            "subject": "Algebra",
        },
        {"problem": "1 + 1?", "solution": "2", "level": "Level 1", "subject": "Sums"},
    ]
    table(rows).to_parquet("m.parquet")
    query = "split=test&prompt=problem&answer=solution&difficulty=level&subtask=subject"
    problem, plain = (load_task(f"datasets:m.parquet?{query}").problem(i, "test") for i in range(2))
    assert (problem.prompt, problem.answer) == ("Half of 1?", "\\frac{1}{2}")
    assert (problem.difficulty, problem.subtask) == (3.0, "Algebra")
    assert (plain.answer, plain.meta) == ("2", {})


def test_a_hub_name_is_looked_up_in_the_cache_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    write_divided(Path("snapshot"), train=gsm(20), test=gsm(5, 50))
    asked: list[Any] = []

    def snapshot(name: str, **options: Any) -> str:
        asked.append((name, options))
        return "snapshot"

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert sizes("datasets:openai/gsm8k?split=test")[2] == 5
    assert asked == [("openai/gsm8k", {"repo_type": "dataset", "local_files_only": True})]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("datasets:openai/gsm8k?split=test", "not at hand"),
        ("datasets:none.parquet", "not at hand"),
        ("datasets:two?split=tset", "has no split 'tset'"),
        ("datasets:two?splt=test", "did you mean 'split'"),
        ("datasets:two?prompt=problem", "no column 'problem'; set prompt= to one of question, answer"),
        ("datasets:a.parquet?split=train", "is not divided"),
        ("datasets:broken.parquet", "cannot be read"),
        ("datasets:odd", "has no split 'test'"),
        ("datasets:hedge.parquet", "no single final answer"),
        ("datasets:empty", "cannot be read"),
    ],
)
def test_refusals_are_one_line(spec: str, words: str) -> None:
    from datasets import DatasetDict

    write_divided(Path("two"), train=gsm(3), test=gsm(3, 5))
    DatasetDict(left=table(gsm(3)), right=table(gsm(3))).save_to_disk("odd")
    table(gsm(3)).to_parquet("a.parquet")
    table([{"question": "?", "answer": "\\boxed{1} or \\boxed{2}"}]).to_parquet("hedge.parquet")
    Path("broken.parquet").write_bytes(b"PAR1 no")
    Path("empty").mkdir()
    with pytest.raises(BadInput, match=r"^datasets:|^task 'datasets:") as caught:
        load_task(spec)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
