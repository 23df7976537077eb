"""Crosswords: a small grid, clues, and a list that every entry must come from."""

import random
from dataclasses import dataclass

from rewards.constraint import slots
from rewards.puzzle import table
from rewards.tasks.base import Generator, number
from rewards.types import Problem

Cells = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Crossword(Generator):
    """Fill a small crossword from clues and a list of words (difficulty: how many entries)."""

    base = reward = "crossword"
    spare: tuple[int, int] = number((5, 15), (0, 60), "words in the list that the reference does not use")

    def draw(self, rng: random.Random) -> Problem:
        data, filled = table("words.yaml"), None
        clues = data["clues"]
        while filled is None:
            grid = rng.choice(data["grids"])
            filled = fill(slots(grid), rng.sample(sorted(clues), len(clues)), {})
        entries = {"".join(filled[at] for at in cells): cells for cells in slots(grid)}
        words = sorted([*entries, *rng.sample(sorted(set(clues) - set(entries)), rng.randint(*self.spare))])
        starts = sorted({cells[0] for cells in entries.values()})
        places = {
            w: f"{starts.index(c[0]) + 1} {'across' if c[0][0] == c[1][0] else 'down'}" for w, c in entries.items()
        }
        asked = {
            "grid": "\n".join(grid),
            "clues": "\n".join(f"{place}: {clues[word]}" for word, place in places.items()),
        }
        rows = "\n".join("".join(filled.get((r, c), "#") for c in range(len(row))) for r, row in enumerate(grid))
        return Problem(
            id="",
            task=self.base,
            prompt=data["crossword"].format(words=", ".join(words), **asked),
            answer=rows,
            key=rows,
            difficulty=float(len(entries)),
            subtask=f"{len(grid)}x{len(grid[0])}",
            meta={"grid": grid, "words": words},
        )

    def gold(self, problem: Problem) -> str:
        return f"<answer>\n{problem.answer}\n</answer>"


def fill(
    entries: list[Cells], words: list[str], letters: dict[tuple[int, int], str]
) -> dict[tuple[int, int], str] | None:
    """Letters for all cells so that each entry is another one of the words, tried in order; None where none fit."""
    if not entries:
        return letters
    cells, *rest = sorted(entries, key=lambda entry: -sum(at in letters for at in entry))  # the most constrained first
    for word in words:
        if len(word) == len(cells) and all(letters.get(at, x) == x for at, x in zip(cells, word, strict=True)):
            others = [other for other in words if other != word]
            if found := fill(rest, others, letters | dict(zip(cells, word, strict=True))):
                return found
    return None
