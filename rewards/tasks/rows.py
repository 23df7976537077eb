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

KNOWN = {f.name for f in fields(Problem)} - {"task", "meta"} | {"split"}
HASHED_AS = "jsonl"  # for the task in the split's hash: a row in a renamed file, or in two files, keeps its split
Row = tuple[Problem, Split | None]  # a problem with the split that it asks for; None leaves it to its content
PREFIX = "datasets:"
READERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}
SPLIT_NAMES: dict[str, Split] = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val"}
COLUMNS = {"prompt": "question", "answer": "answer", "difficulty": "", "subtask": ""}
PARAMETERS = COLUMNS | {"config": "", "split": ""}
"""What a task string may set. The rows of `split` are the test problems (its own `test` where none is named), those of
train and validation are train and val; what is not divided is divided by content, or all of it test with `split=test`.
"""
WHOLE = ""  # the name of the only table of a data set that is not divided


class Rows(Task):
    """Rows by split. Train wraps around with a new order in each pass; val and test don't."""

    reward = "exact_match"

    def __init__(self, name: str, seed: int, rows: list[Row]) -> None:
        self.name, self.seed = name, seed
        self._rows: dict[Split, list[Problem]] = {"test": [], "val": [], "train": []}
        for problem, wanted in rows:
            self._rows[wanted or split_of(HASHED_AS, problem.key)].append(problem)
        held_out: set[str] = set()
        for split, problems in self._rows.items():  # without those whose content stands in a split held out further
            self._rows[split] = [problem for problem in problems if problem.key not in held_out]
            held_out |= {problem.key for problem in problems}
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
        if split == "train":
            done, place = divmod(index, len(rows))
            problem = rows[self._order(done)[place]]
            return replace(problem, id=f"{problem.id}@{done + 1}") if done else problem
        if index >= len(rows):
            raise BadInput(f"{self.name} has {len(rows)} {split} rows, not {index + 1}; ask for fewer problems")
        return rows[index]

    def skip(self, ids: Collection[str]) -> None:
        """Leave rows out from here on."""
        self._rows = {split: [p for p in rows if p.id not in ids] for split, rows in self._rows.items()}
        self.skipped += len(ids)
        self._order.cache_clear()

    def gold(self, problem: Problem) -> str:
        """The row's `gold` response, else its answer in a box (in tags where its braces are odd)."""
        if isinstance(problem.meta.get("gold"), str):
            return problem.meta["gold"]
        answer = as_text(problem.answer)
        balanced = answer.count("{") == answer.count("}")
        return f"\\boxed{{{answer}}}" if balanced else f"<answer>{answer}</answer>"

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
    rows: list[Row] = []
    seen: dict[str, int] = {}
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


def to_problem(where: str, task: str, number: int | str, row: dict[str, Any]) -> Row:
    """A row as a problem. Raises BadInput that begins with `where`."""
    row = {name: value for name, value in row.items() if value is not None}
    prompt, difficulty = row.get("prompt"), row.get("difficulty", 0)
    key = squeeze(prompt) if isinstance(prompt, str) else _chat_text(prompt)
    if not key:
        found = f"prompt {str(prompt)[:40]!r}" if prompt else "no prompt"
        raise BadInput(f"{where}: {found}; 'prompt' is a text or a list of {{role, content}} messages")
    if "answer" not in row:
        raise BadInput(f"{where}: no answer; add the field 'answer'")
    if row.get("split", "train") not in SPLITS:
        raise BadInput(f"{where}: split {row['split']!r}; {nearest(str(row['split']), SPLITS)}")
    if isinstance(difficulty, bool) or not isinstance(difficulty, int | float):
        raise BadInput(f"{where}: difficulty {difficulty!r} is not a number")
    if not isinstance(row.get("reward", ""), str | dict):
        raise BadInput(f"{where}: reward {row['reward']!r} is neither a name nor {{use, args}}")
    problem = Problem(
        id=str(row.get("id", f"{task}:{number}")),
        task=task,
        prompt=row["prompt"],
        answer=row["answer"],
        key=str(row.get("key", key)),
        difficulty=float(difficulty),
        subtask=str(row.get("subtask", "")),
        reward=row.get("reward", Rows.reward),
        meta={name: value for name, value in row.items() if name not in KNOWN},
    )
    return problem, row.get("split")


def _chat_text(prompt: Any) -> str | None:
    """A chat as one text; None for what is none."""
    texts = []
    for message in prompt if isinstance(prompt, list) else ():
        match message:
            case {"role": str(role), "content": str(content)}:
                texts.append(f"{role}: {squeeze(content)}")
            case _:
                return None
    return "\n".join(texts) or None


def read_dataset(name: str, seed: int, given: dict[str, str]) -> Rows:
    """The rows of a local data set; `name` is the task string, its parameters `given`. An answer that ends in `#### 42`
    or `\\boxed{42}` is 42, and its text the gold. Raises BadInput for what is not at hand."""
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
    return Rows(name, seed, rows)


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
