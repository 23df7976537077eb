"""Problems from rows of data, objects with `prompt` and `answer`: a JSONL file of one's own, one object a line."""

import json
import random
from collections.abc import Collection
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from rewards.answer import as_text, squeeze
from rewards.errors import BadInput, nearest
from rewards.tasks.base import SPLITS, Task, split_of
from rewards.types import Problem, Split

KNOWN = {f.name for f in fields(Problem)} - {"task", "meta"} | {"split"}
HASHED_AS = "jsonl"  # for the task in the split's hash: a row in a renamed file, or in two files, keeps its split
Row = tuple[Problem, Split | None]  # a problem with the split that it asks for; None leaves it to its content


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


class Jsonl(Rows):
    """The rows of a file."""

    def __init__(self, path: str, seed: int = 0) -> None:
        """Read and check the whole file. Raises BadInput that names the line."""
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
        super().__init__(path, seed, rows)


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
