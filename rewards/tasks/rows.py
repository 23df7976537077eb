"""Problems from rows of data: each object has `prompt` and `answer`; what a file and a data set have in common."""

from __future__ import annotations

import json
import random
from dataclasses import fields, replace
from typing import Any

from rewards.answer import squeeze
from rewards.equality import as_text
from rewards.errors import BadInput
from rewards.tasks.base import SPLITS, nearest, split_of
from rewards.types import Message, Problem, Split

KNOWN = {f.name for f in fields(Problem)} - {"task", "meta"}
HASHED_AS = "jsonl"
"""Stands for the task in the split's hash: the same row in a renamed file, or in two files, keeps its split."""
REWARD = "exact_match"
HELD_OUT_FIRST: tuple[Split, ...] = ("test", "val", "train")


class Rows:
    """Rows by split. Train wraps around with a new order in each pass; val and test don't."""

    reward = REWARD

    def __init__(self, name: str, seed: int, rows: list[tuple[Problem, Split | None]]) -> None:
        """`rows` come with the split that they ask for; None leaves it to their content."""
        self.name, self.seed = name, seed
        self._rows, self.dropped = _divide(rows)
        self._order: tuple[int, list[int]] = (-1, [])  # (pass, its order) last used

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
        if split != "train":
            if index >= len(rows):
                raise BadInput(f"{self.name} has {len(rows)} {split} rows, not {index + 1}; ask for fewer problems")
            return rows[index]
        done, place = divmod(index, len(rows))
        problem = rows[self._shuffled(done, len(rows))[place]]
        return replace(problem, id=f"{problem.id}@{done + 1}") if done else problem

    def gold(self, problem: Problem) -> str:
        """The row's `gold` response, else its answer in a box (in tags where its braces are odd)."""
        if isinstance(problem.meta.get("gold"), str):
            return problem.meta["gold"]
        answer = as_text(problem.answer)
        balanced = answer.count("{") == answer.count("}")
        return f"\\boxed{{{answer}}}" if balanced else f"<answer>{answer}</answer>"

    def _shuffled(self, done: int, count: int) -> list[int]:
        if self._order[0] != done:
            order = list(range(count))
            random.Random(f"{self.seed}|{self.name}|{done}").shuffle(order)
            self._order = (done, order)
        return self._order[1]


def to_problem(where: str, task: str, number: int | str, row: dict[str, Any]) -> tuple[Problem, Split | None]:
    """A row as a problem, and the split that it asks for. Raises BadInput that begins with `where`."""
    row = {name: value for name, value in row.items() if value is not None}
    _check(where, row)
    prompt, split = row["prompt"], row.get("split")
    problem = Problem(
        id=str(row.get("id", f"{task}:{number}")),
        task=task,
        prompt=prompt,
        answer=row["answer"],
        key=str(row.get("key", _canonical(prompt))),
        difficulty=float(row.get("difficulty", 0)),
        subtask=str(row.get("subtask", "")),
        reward=row.get("reward", REWARD),
        meta={name: value for name, value in row.items() if name not in KNOWN | {"split"}},
    )
    return problem, split


def _check(where: str, row: dict[str, Any]) -> None:
    prompt = row.get("prompt")
    chat = isinstance(prompt, list) and prompt and all(map(_is_message, prompt))
    if not chat and not (isinstance(prompt, str) and prompt.strip()):
        found = f"prompt {str(prompt)[:40]!r}" if prompt else "no prompt"
        raise BadInput(f"{where}: {found}; 'prompt' is a text or a list of {{role, content}} messages")
    if "answer" not in row:
        raise BadInput(f"{where}: no answer; add the field 'answer'")
    if row.get("split", "train") not in SPLITS:
        raise BadInput(f"{where}: split {row['split']!r}; {nearest(str(row['split']), list(SPLITS))}")
    difficulty = row.get("difficulty", 0)
    if isinstance(difficulty, bool) or not isinstance(difficulty, int | float):
        raise BadInput(f"{where}: difficulty {difficulty!r} is not a number")
    if not isinstance(row.get("reward", ""), str | dict):
        raise BadInput(f"{where}: reward {row['reward']!r} is neither a name nor {{use, args}}")


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(name), str) for name in ("role", "content"))


def _canonical(prompt: str | list[Message]) -> str:
    if isinstance(prompt, str):
        return squeeze(prompt)
    return "\n".join(f"{message['role']}: {squeeze(message['content'])}" for message in prompt)


def _divide(rows: list[tuple[Problem, Split | None]]) -> tuple[dict[Split, list[Problem]], int]:
    """Rows by split, and how many were dropped since their content stands in a split that is held out further."""
    by_split: dict[Split, list[Problem]] = {name: [] for name in SPLITS}
    for problem, wanted in rows:
        by_split[wanted or split_of(HASHED_AS, problem.key)].append(problem)
    held_out: set[str] = set()
    kept: dict[Split, list[Problem]] = {}
    for split in HELD_OUT_FIRST:
        kept[split] = [problem for problem in by_split[split] if problem.key not in held_out]
        held_out |= {problem.key for problem in kept[split]}
    return kept, len(rows) - sum(map(len, kept.values()))
