"""Problems from a local data set, read through the `datasets` library: a file, a directory, or what its cache holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rewards.answer import final_answer
from rewards.errors import BadInput
from rewards.tasks.base import nearest, split_of
from rewards.tasks.rows import HASHED_AS, Rows, to_problem
from rewards.types import Problem, Split

PREFIX = "datasets:"
READERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}
SPLIT_NAMES: dict[str, Split] = {"train": "train"} | dict.fromkeys(("validation", "valid", "val", "dev"), "val")
Tables = dict[str, Iterable[dict[str, Any]]]
"""Rows by the data set's own split; under WHOLE where it has none."""
WHOLE = ""


@dataclass(frozen=True)
class Columns:
    """What a task string may set: the columns that are read, the data set's configuration, the split that is held out.

    The rows of `split` are the test problems (its own `test` where none is named), those of train and validation are
    train and val; a data set that is not divided is divided by content, or all of it is test with `split=test`.
    """

    prompt: str = "question"
    answer: str = "answer"
    difficulty: str = ""
    subtask: str = ""
    config: str = ""
    split: str = ""


class DataSet(Rows):
    """The rows of a local data set. An answer that ends in `#### 42` or `\\boxed{42}` is 42, and its text the gold."""

    def __init__(self, name: str, seed: int, given: dict[str, str]) -> None:
        """Read it all; `name` is the task string, its parameters `given`. Raises BadInput for what is not at hand."""
        source = name.partition("?")[0].removeprefix(PREFIX)
        for key in given:
            if key not in (known := [f.name for f in fields(Columns)]):
                raise BadInput(f"task {name!r}: unknown parameter {key!r}; {nearest(key, known)}")
        try:
            rows = list(_problems(source, Columns(**given)))
        except BadInput:
            raise
        except Exception as error:  # readers raise whatever a broken file makes them
            raise BadInput(f"{PREFIX}{source} cannot be read: {' '.join(str(error).split())[:300]}") from None
        if not rows:
            raise BadInput(f"{PREFIX}{source} holds no rows")
        super().__init__(name, seed, rows)


def _problems(source: str, columns: Columns) -> Iterator[tuple[Problem, Split | None]]:
    tables, stem = _divided(source, _tables(source, columns.config), columns.split), Path(source).stem
    has_val = any(wanted == "val" for _, wanted in tables.values())
    for split, (table, wanted) in tables.items():
        for number, row in enumerate(table, 1):
            where, place = (f"{split} row {number}", f"{split}:{number}") if split else (f"row {number}", number)
            where = f"{PREFIX}{source}, {where}"
            problem, _ = to_problem(where, stem, place, _row(where, row, columns))
            if wanted == "train" and not has_val:  # selection needs rows that are not trained on
                yield problem, "val" if split_of(HASHED_AS, problem.key) == "val" else "train"
            else:
                yield problem, wanted


def _divided(source: str, tables: Tables, chosen: str) -> dict[str, tuple[Iterable[dict[str, Any]], Split | None]]:
    """Each table that is read, with the split its rows go to; None leaves it to their content."""
    if WHOLE in tables:
        if chosen not in ("", "test"):
            raise BadInput(f"{PREFIX}{source} is not divided; split=test makes all of it the test problems")
        return {WHOLE: (tables[WHOLE], "test" if chosen else None)}
    held_out = chosen or "test"
    splits = {name: "test" if name == held_out else SPLIT_NAMES.get(name) for name in tables}
    if held_out not in tables and (chosen or not any(splits.values())):
        raise BadInput(
            f"{PREFIX}{source} has no split {held_out!r}; name the test problems with split=, "
            f"one of {', '.join(tables)}"
        )
    return {name: (tables[name], split) for name, split in splits.items() if split}


def _tables(source: str, config: str) -> Tables:
    """Open what `source` names, never over the network; data files are streamed, so that nothing is copied."""
    import datasets

    path = Path(source)
    if path.suffix in READERS and path.is_file():
        options = {"data_files": str(path), "split": "train", "streaming": True}
        return {WHOLE: datasets.load_dataset(READERS[path.suffix], **options)}
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        found = datasets.load_from_disk(source)
    else:
        directory = source if path.is_dir() else _cached(source)
        found = datasets.load_dataset(directory, name=config or None, streaming=True)
    if not isinstance(found, dict):
        return {WHOLE: found}
    return {WHOLE: found["train"]} if list(found) == ["train"] else dict(found)


def _cached(name: str) -> str:
    """The directory of a data set that an earlier download left in the cache of the hub's client."""
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, repo_type="dataset", local_files_only=True)
    except Exception:  # not there, or no name of a data set: many classes, the same to us
        raise BadInput(
            f"{PREFIX}{name} is not at hand: no such file or directory ({', '.join(READERS)}), and not in the cache; "
            "nothing is downloaded"
        ) from None


def _row(where: str, row: dict[str, Any], columns: Columns) -> dict[str, Any]:
    """The fields of a row by the names that `to_problem` knows."""
    named = {name: getattr(columns, name) for name in ("prompt", "answer", "difficulty", "subtask")}
    for name, column in named.items():
        if column and column not in row:
            raise BadInput(f"{where}: no column {column!r}; set {name}= to one of {', '.join(row)}")
    found = {name: row[column] for name, column in named.items() if column}
    if isinstance(text := found["answer"], str) and ("####" in text or "\\boxed" in text):
        found |= {"answer": _stated(where, text), "gold": text}
    if isinstance(level := found.get("difficulty"), str):
        number = re.search(r"\d+(\.\d+)?", level)  # "Level 3"
        found["difficulty"] = float(number[0]) if number else level
    return found


def _stated(where: str, text: str) -> str:
    answer = final_answer(text)
    if answer is None:
        raise BadInput(f"{where}: no single final answer in {text[-80:]!r}; name the column with the answer alone")
    return answer
