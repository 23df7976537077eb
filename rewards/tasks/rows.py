"""Problems from rows of data: of a JSONL file, one object with `prompt` and `answer` a line; of a local data set, read
through the `datasets` library: a file, a directory, or what its cache holds."""

import json
import random
import re
from collections.abc import Collection, Iterable
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from rewards.answer import as_text, final_answer, squeeze
from rewards.errors import BadInput, nearest, one_line
from rewards.tasks.base import SPLITS, Task, check_names, split_of
from rewards.types import Problem, Split

FIELDS = {f.name for f in fields(Problem)} - {"task", "meta"}  # of a problem, that a row may set
HASHED_AS = "jsonl"  # for the task in the split's hash: a row in a renamed file, or in two files, keeps its split
Row = tuple[Problem, Split | None]  # a problem with the split that it asks for; None leaves it to its content
PREFIX = "datasets:"
READERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}
SPLIT_NAMES: dict[str, Split] = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val"}
COLUMNS = {"prompt": "question", "answer": "answer", "difficulty": "", "subtask": ""}
PARAMETERS = COLUMNS | {"config": "", "split": ""}
"""What a task string may set. The rows of `split` are the test problems (its own `test` where none is named), those of
train and validation train and val; what is not divided is divided by content, or all of it test with `split=test`."""


class Rows(Task):
    """Rows by split. Train wraps around with a new order in each pass; val and test don't."""

    reward = "exact_match"

    def __init__(self, name: str, seed: int, rows: list[Row]) -> None:
        self.name, self.seed = name, seed
        placed = [(problem, wanted or split_of(HASHED_AS, problem.key)) for problem, wanted in rows]
        self._rows, held_out = dict[Split, list[Problem]](), set[str]()
        for split in reversed(SPLITS):  # without those whose content stands in a split held out further
            self._rows[split] = [row for row, place in placed if place == split and row.key not in held_out]
            held_out |= {row.key for row in self._rows[split]}
        self.dropped = len(rows) - sum(map(len, self._rows.values()))  # since their content is held out
        self.skipped = 0  # by `skip`
        self._order = lru_cache(maxsize=1)(self._shuffled)

    @property
    def rewards(self) -> list[Any]:
        """The default and every row's own."""
        own = [problem.reward for rows in self._rows.values() for problem in rows]
        return list({json.dumps(spec, sort_keys=True): spec for spec in own}.values())

    def size(self, split: Split) -> int:
        return len(self._rows[split])

    def problem(self, index: int, split: Split) -> Problem:
        """Row `index` of a split; in later passes over train the id ends in @2, @3, …"""
        rows = self._rows[split]
        if not rows:
            raise BadInput(f'{self.name} has no {split} rows: add "split": "{split}" to some, or more rows')
        if split != "train" and index >= len(rows):
            raise BadInput(f"{self.name} has {len(rows)} {split} rows, not {index + 1}; ask for fewer problems")
        done, place = divmod(index, len(rows))
        problem = rows[self._order(done)[place] if split == "train" else place]
        return replace(problem, id=f"{problem.id}@{done + 1}") if done else problem

    def skip(self, ids: Collection[str]) -> None:
        """Leave rows out from here on."""
        self._rows = {split: [p for p in rows if p.id not in ids] for split, rows in self._rows.items()}
        self.skipped += len(ids)
        self._order.cache_clear()

    def gold(self, problem: Problem) -> str:
        """The row's `gold` response, else its answer in a box (in tags where its braces are odd)."""
        given, answer = problem.meta.get("gold"), as_text(problem.answer)
        boxed = f"\\boxed{{{answer}}}" if answer.count("{") == answer.count("}") else f"<answer>{answer}</answer>"
        return given if isinstance(given, str) else boxed

    def _shuffled(self, done: int) -> list[int]:
        order = list(range(len(self._rows["train"])))
        random.Random(f"{self.seed}|{self.name}|{done}").shuffle(order)
        return order


def read_jsonl(path: str, seed: int = 0) -> Rows:
    """The rows of a whole file. Raises BadInput that names the line."""
    try:
        lines = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        reason = str(error.strerror).lower()
        raise BadInput(f"{path}: {reason}; give the path from the working directory, {Path.cwd()}") from None
    rows, seen = list[Row](), dict[str, int]()
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{path}:{number}"
            rows.append(to_problem(where, Path(path).stem, number, parse_object(where, line)))
            if (first := seen.setdefault(name := rows[-1][0].id, number)) != number:
                raise BadInput(f"{path}: lines {first} and {number} have the same id {name!r}; make ids unique")
    if not rows:
        raise BadInput(f"{path} holds no rows; write one JSON object a line with prompt and answer")
    return Rows(path, seed, rows)


def parse_object(where: str, line: bytes) -> dict[str, Any]:
    """One line of JSONL. Raises BadInput that names the line where it is no JSON object."""
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        reason = f"column {error.pos + 1}: {error.msg}" if isinstance(error, json.JSONDecodeError) else error
        raise BadInput(f"{where}: broken JSON ({reason}); write one object a line") from None
    if not isinstance(row, dict):
        raise BadInput(f"{where}: {type(row).__name__} instead of an object")
    return row


def to_problem(where: str, task: str, number: int | str, given: dict[str, Any]) -> Row:
    """A row as a problem. Raises BadInput that begins with `where`."""
    row: dict[str, Any] = {"id": f"{task}:{number}", "difficulty": 0, "subtask": "", "reward": Rows.reward}
    meta: dict[str, Any] = {}
    for name, value in given.items():
        if value is not None:
            (row if name in FIELDS else meta)[name] = value
    prompt, split, difficulty = row.get("prompt"), meta.pop("split", None), row["difficulty"]
    try:
        told = (message["role"] + ": " + squeeze(message["content"]) for message in prompt or ())
        key = squeeze(prompt) if isinstance(prompt, str) else "\n".join(told)
    except (AttributeError, KeyError, TypeError):  # no chat
        key = ""
    if not key:
        found = f"prompt {str(prompt)[:40]!r}" if prompt else "no prompt"
        raise BadInput(f"{where}: {found}; 'prompt' is a text or a list of {{role, content}} messages")
    if "answer" not in row:
        raise BadInput(f"{where}: no answer; add the field 'answer'")
    if split is not None and split not in SPLITS:
        raise BadInput(f"{where}: split {split!r}; {nearest(str(split), SPLITS)}")
    if isinstance(difficulty, bool) or not isinstance(difficulty, int | float):
        raise BadInput(f"{where}: difficulty {difficulty!r} is not a number")
    if not isinstance(row["reward"], str | dict):
        raise BadInput(f"{where}: reward {row['reward']!r} is neither a name nor {{use, args}}")
    row |= {"id": str(row["id"]), "key": str(row.get("key", key)), "subtask": str(row["subtask"])}
    return Problem(task=task, meta=meta, **row | {"difficulty": float(difficulty)}), split


def read_dataset(name: str, seed: int, given: dict[str, str]) -> Rows:
    """The rows of a local data set; `name` is the task string, its parameters `given`. An answer that ends in `#### 42`
    or `\\boxed{42}` is 42, and its text the gold. Raises BadInput for what is not at hand."""
    source = name.partition("?")[0]
    check_names(f"task {name!r}", given, PARAMETERS)
    wanted, rows, stem = PARAMETERS | given, list[Row](), Path(source.removeprefix(PREFIX)).stem
    try:
        tables = _tables(source, wanted["config"], wanted["split"])
        hash_val = all(split != "val" for _, split, _ in tables)  # selection needs rows that are not trained on
        for table, split, found in tables:
            for number, row in enumerate(found, 1):
                where = f"{source}, {table} row {number}" if table else f"{source}, row {number}"
                place = f"{table}:{number}" if table else number
                problem, _ = to_problem(where, stem, place, _fields(where, row, wanted))
                to_val = hash_val and split == "train" and split_of(HASHED_AS, problem.key) == "val"
                rows.append((problem, "val" if to_val else split))
    except BadInput:
        raise
    except Exception as error:  # readers raise whatever a broken file makes them
        raise BadInput(f"{source} cannot be read: {one_line(str(error))}") from None
    if not rows:
        raise BadInput(f"{source} holds no rows")
    return Rows(name, seed, rows)


def _tables(source: str, config: str, chosen: str) -> list[tuple[str, Split | None, Iterable[dict[str, Any]]]]:
    """The tables of what `source` names, each with its name and its split, None for the rows' content to decide. Never
    over the network; data files are streamed, so that nothing is copied."""
    import datasets
    from huggingface_hub import snapshot_download

    place = source.removeprefix(PREFIX)
    path, held_out = Path(place), chosen or "test"
    if path.suffix in READERS and path.is_file():
        found = datasets.load_dataset(READERS[path.suffix], data_files=place, streaming=True)
    elif (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        found = datasets.load_from_disk(place)
    else:
        try:  # the directory, or the one that an earlier download left in the cache of the hub's client
            where = place if path.is_dir() else snapshot_download(place, repo_type="dataset", local_files_only=True)
        except Exception:  # not there, or no name of a data set: many classes, the same to us
            why = f"no such file or directory ({', '.join(READERS)}), and not in the cache"
            raise BadInput(f"{source} is not at hand: {why}; nothing is downloaded") from None
        found = datasets.load_dataset(where, name=config or None, streaming=True)
    tables = found if isinstance(found, dict) else {"train": found}
    if list(tables) == ["train"]:
        if held_out != "test":
            raise BadInput(f"{source} is not divided; split=test makes all of it the test problems")
        return [("", "test" if chosen else None, tables["train"])]
    splits = {name: "test" if name == held_out else SPLIT_NAMES.get(name) for name in tables}
    if held_out not in tables and (chosen or not any(splits.values())):
        hint = f"name the test problems with split=, one of {', '.join(tables)}"
        raise BadInput(f"{source} has no split {held_out!r}; {hint}")
    return [(name, split, tables[name]) for name, split in splits.items() if split]


def _fields(where: str, row: dict[str, Any], wanted: dict[str, str]) -> dict[str, Any]:
    """The fields of a row by the names that `to_problem` knows."""
    found = {}
    for name in filter(wanted.get, COLUMNS):
        if wanted[name] not in row:
            raise BadInput(f"{where}: no column {wanted[name]!r}; set {name}= to one of {', '.join(row)}")
        found[name] = row[wanted[name]]
    text, level = found["answer"], found.get("difficulty")
    if isinstance(text, str) and ("####" in text or "\\boxed" in text):
        found |= {"answer": final_answer(text), "gold": text}
        if found["answer"] is None:
            raise BadInput(f"{where}: no single final answer in {text[-80:]!r}; name the column with the answer alone")
    if isinstance(level, str) and (digits := re.search(r"\d+(\.\d+)?", level)):  # "Level 3"
        found["difficulty"] = float(digits[0])
    return found
