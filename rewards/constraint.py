"""Crosswords and poems: any answer that keeps the rules is right, whatever the reference says."""

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from rewards.puzzle import read_answer
from rewards.types import Problem, Score

MAX_ANSWER = 2_000  # characters
MIN_WORDS = 3  # of a line of a poem
_WORD = re.compile('[^\\s.,;:!?"()\u2013\u2014]+')


def crossword(response: str, problem: Problem) -> Score:
    """Whether every entry of the filled grid is a word of the list. `meta`: grid (rows, `#` is black), words."""
    answer, grid = read_answer(response, problem), problem.meta["grid"]
    rows = [row.replace(" ", "").lower() for row in (answer or "")[:MAX_ANSWER].splitlines()]
    if (shape := [re.sub("[a-z]", ".", row) for row in rows]) != grid:
        return _score(answer, f"a grid of the form {shape}"[:200])
    entries = {"".join(rows[r][c] for r, c in slot) for slot in slots(grid)}
    return _score(answer, ", ".join(sorted(entries - set(problem.meta["words"]))))


def slots(grid: list[str]) -> list[tuple[tuple[int, int], ...]]:
    """The entries of a grid, across and then down: runs of at least two open cells, each (row, column)."""
    across = [[(r, c) for c in range(len(row))] for r, row in enumerate(grid)]
    lines = across + [list(column) for column in zip(*across, strict=True)]
    runs = [(black, tuple(run)) for line in lines for black, run in groupby(line, lambda at: grid[at[0]][at[1]] == "#")]
    return [run for black, run in runs if not black and len(run) > 1]


def poem(response: str, problem: Problem) -> Score:
    """Whether a poem keeps the rules in `meta`: lines, and as asked words, acrostic, syllables (of each line), rhyme
    (ABAB). Every word must be in the pronouncing dictionary: of others nobody can tell the syllables."""
    syllables([""])  # loads the dictionary in the pool's warm-up call, not on the clock of the first item
    answer = read_answer(response, problem)
    return _score(answer, next(_faults(answer or "", problem.meta), ""))


def _score(answer: str | None, fault: str) -> Score:
    if not answer:
        return Score(0.0, False, "unparsed", detail="no final answer")
    return Score(float(not fault), not fault, "wrong" if fault else "ok", detail=fault)


def _faults(text: str, rules: dict[str, Any]) -> Iterator[str]:
    """The rules that are broken, in the order in which they make sense."""
    from pronouncing import phones_for_word

    if len(text) > MAX_ANSWER:
        yield "too long an answer"
    lines = [_WORD.findall(line) for line in text.lower().replace("\u2019", "'").splitlines() if line.strip()]
    words = [word for line in lines for word in line]
    if len(lines) != rules["lines"] or any(len(line) < MIN_WORDS for line in lines):
        yield f"not {rules['lines']} lines of {MIN_WORDS} words or more"
    if len(set(map(tuple, lines))) < len(lines):
        yield "a line is repeated"
    if missing := sorted(set(rules.get("words", ())) - set(words)):
        yield f"without {', '.join(missing)}"
    if (initials := "".join(line[0][0] for line in lines)) != rules.get("acrostic", initials):
        yield f"its first letters are {initials}"
    if strange := [word for word in words if not phones_for_word(word)]:
        yield f"{strange[0]!r} is not in the pronouncing dictionary"
    for line, count in zip(lines, rules.get("syllables", ()), strict=False):
        if count not in syllables(line):
            yield f"{' '.join(line)!r} has {min(syllables(line))} syllables, not {count}"
    scheme = rules.get("rhyme", "")
    for letter in set(scheme):
        group = [line[-1] for line, mark in zip(lines, scheme, strict=False) if mark == letter]
        if not rhymes(group):
            yield f"{', '.join(group)} do not rhyme"


def rhymes(words: list[str]) -> bool:
    """Whether the words differ and share a rhyme."""
    from pronouncing import phones_for_word, rhyming_part

    parts = [set(map(rhyming_part, phones_for_word(word))) for word in words]
    return len(set(words)) == len(words) and bool(set.intersection(*parts))


def syllables(words: list[str]) -> set[int]:
    """The counts that a line can have: some words have several pronunciations, those not in the dictionary none."""
    from pronouncing import phones_for_word, syllable_count

    counts = {0}
    for word in words:
        counts = {count + syllable_count(sound) for count in counts for sound in phones_for_word(word)}
    return counts
