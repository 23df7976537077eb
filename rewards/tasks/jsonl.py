"""Problems of one's own: a JSONL file, one object a line with `prompt` and `answer`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rewards.errors import BadInput
from rewards.tasks.rows import Rows, to_problem
from rewards.types import Problem, Split

Row = tuple[int, Problem, Split | None]
"""Line number, problem, and the split it asks for."""


class Jsonl(Rows):
    """The rows of a file."""

    def __init__(self, path: str, seed: int = 0) -> None:
        """Read and check the whole file. Raises BadInput that names the line."""
        rows = list(_read(Path(path)))
        if not rows:
            raise BadInput(f"{path} holds no rows; write one JSON object a line with prompt and answer")
        _refuse_repeated_ids(path, rows)
        super().__init__(path, seed, [(problem, split) for _, problem, split in rows])


def _read(path: Path) -> Iterator[Row]:
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise BadInput(f"{path}: {reason}; give the path from the working directory, {Path.cwd()}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{path}:{number}"
            yield number, *to_problem(where, path.stem, number, parse_object(where, line))


def parse_object(where: str, line: bytes) -> dict[str, Any]:
    """One line of JSONL. Raises BadInput that names the line where it is no JSON object."""
    try:
        row = json.loads(line.decode())
    except json.JSONDecodeError as error:
        raise BadInput(f"{where}: broken JSON (column {error.pos + 1}: {error.msg}); write one object a line") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"{where}: broken JSON ({error}); write one object a line") from None
    if not isinstance(row, dict):
        raise BadInput(f"{where}: {type(row).__name__} instead of an object")
    return row


def _refuse_repeated_ids(path: str, rows: list[Row]) -> None:
    seen: dict[str, int] = {}
    for number, problem, _ in rows:
        first = seen.setdefault(problem.id, number)
        if first != number:
            raise BadInput(f"{path}: lines {first} and {number} have the same id {problem.id!r}; make ids unique")
