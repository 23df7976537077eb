"""Problems from a local data set, read through the `datasets` library: a file, a directory, or what its cache holds."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rewards.answer import final_answer
from rewards.errors import BadInput, one_line
from rewards.tasks.base import check_names, split_of
from rewards.tasks.jsonl import HASHED_AS, Row, Rows, to_problem
from rewards.types import Split

PREFIX = "datasets:"
READERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}
SPLIT_NAMES: dict[str, Split] = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val"}
COLUMNS = {"prompt": "question", "answer": "answer", "difficulty": "", "subtask": ""}
PARAMETERS = COLUMNS | {"config": "", "split": ""}
"""What a task string may set. The rows of `split` are the test problems (its own `test` where none is named), those of
train and validation are train and val; what is not divided is divided by content, or all of it test with `split=test`.
"""
WHOLE = ""  # the name of the only table of a data set that is not divided


class DataSet(Rows):
    """The rows of a local data set. An answer that ends in `#### 42` or `\\boxed{42}` is 42, and its text the gold."""

    def __init__(self, name: str, seed: int, given: dict[str, str]) -> None:
        """Read it all; `name` is the task string, its parameters `given`. Raises BadInput for what is not at hand."""
        source = name.partition("?")[0].removeprefix(PREFIX)
        check_names(f"task {name!r}", given, PARAMETERS)
        wanted, rows = PARAMETERS | given, list[Row]()
        try:
            tables = _tables(source, wanted["config"])
            splits = _splits(source, list(tables), wanted["split"])
            hash_val = "val" not in splits.values()  # selection needs rows that are not trained on
            for table, split in splits.items():
                for number, row in enumerate(tables[table], 1):
                    where = f"{PREFIX}{source}, {table} row {number}" if table else f"{PREFIX}{source}, row {number}"
                    place = f"{table}:{number}" if table else number
                    problem, _ = to_problem(where, Path(source).stem, place, _fields(where, row, wanted))
                    to_val = hash_val and split == "train" and split_of(HASHED_AS, problem.key) == "val"
                    rows.append((problem, "val" if to_val else split))
        except BadInput:
            raise
        except Exception as error:  # readers raise whatever a broken file makes them
            raise BadInput(f"{PREFIX}{source} cannot be read: {one_line(str(error))}") from None
        if not rows:
            raise BadInput(f"{PREFIX}{source} holds no rows")
        super().__init__(name, seed, rows)


def _tables(source: str, config: str) -> dict[str, Iterable[dict[str, Any]]]:
    """Open what `source` names, never over the network; data files are streamed, so that nothing is copied."""
    import datasets
    from huggingface_hub import snapshot_download

    path = Path(source)
    if path.suffix in READERS and path.is_file():
        found = datasets.load_dataset(READERS[path.suffix], data_files=str(path), streaming=True)
    elif (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        found = datasets.load_from_disk(source)
    else:
        try:  # the directory, or the one that an earlier download left in the cache of the hub's client
            where = source if path.is_dir() else snapshot_download(source, repo_type="dataset", local_files_only=True)
        except Exception:  # not there, or no name of a data set: many classes, the same to us
            why = f"no such file or directory ({', '.join(READERS)}), and not in the cache"
            raise BadInput(f"{PREFIX}{source} is not at hand: {why}; nothing is downloaded") from None
        found = datasets.load_dataset(where, name=config or None, streaming=True)
    if not isinstance(found, dict):
        return {WHOLE: found}
    return {WHOLE: found["train"]} if list(found) == ["train"] else dict(found)


def _splits(source: str, tables: list[str], chosen: str) -> dict[str, Split | None]:
    """The split of each table that is read; None leaves it to the rows' content."""
    if tables == [WHOLE]:
        if chosen not in ("", "test"):
            raise BadInput(f"{PREFIX}{source} is not divided; split=test makes all of it the test problems")
        return {WHOLE: "test" if chosen else None}
    held_out = chosen or "test"
    splits = {name: "test" if name == held_out else SPLIT_NAMES.get(name) for name in tables}
    if held_out not in tables and (chosen or not any(splits.values())):
        hint = f"name the test problems with split=, one of {', '.join(tables)}"
        raise BadInput(f"{PREFIX}{source} has no split {held_out!r}; {hint}")
    return {name: split for name, split in splits.items() if split}


def _fields(where: str, row: dict[str, Any], wanted: dict[str, str]) -> dict[str, Any]:
    """The fields of a row by the names that `to_problem` knows."""
    columns = {name: wanted[name] for name in COLUMNS if wanted[name]}
    for name, column in columns.items():
        if column not in row:
            raise BadInput(f"{where}: no column {column!r}; set {name}= to one of {', '.join(row)}")
    found = {name: row[column] for name, column in columns.items()}
    if isinstance(text := found["answer"], str) and ("####" in text or "\\boxed" in text):
        found |= {"answer": final_answer(text), "gold": text}
        if found["answer"] is None:
            raise BadInput(f"{where}: no single final answer in {text[-80:]!r}; name the column with the answer alone")
    if isinstance(level := found.get("difficulty"), str):
        digits = re.search(r"\d+(\.\d+)?", level)  # "Level 3"
        found["difficulty"] = float(digits[0]) if digits else level
    return found
