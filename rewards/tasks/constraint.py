"""Crosswords: a small grid, clues, a list of all entries. Poems: the rules are read off one made from templates."""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rewards import table
from rewards.puzzle import read_answer
from rewards.tasks.base import Generator, number
from rewards.types import Problem, Score

MAX_ANSWER = 2_000  # characters
MIN_WORDS = 3  # of a line of a poem
_WORD = re.compile('[^\\s.,;:!?"()\u2013\u2014]+')
Cell = tuple[int, int]
Letters = dict[Cell, str]


@dataclass(frozen=True)
class Crossword(Generator):
    """Fill a small crossword from clues and a list of words (difficulty: how many entries)."""

    base = reward = "crossword"
    style = "plain"  # gold answers stand in tags
    spare: tuple[int, int] = number((5, 15), (0, 60), "words in the list that the reference does not use")

    def draw(self, rng: random.Random) -> Problem:
        data, filled = table("words"), None
        clues = data["clues"]
        while filled is None:
            grid = rng.choice(data["grids"])
            filled = fill(slots(grid), rng.sample(sorted(clues), len(clues)), {})
        entries = {"".join(filled[at] for at in cells): cells for cells in slots(grid)}
        words = sorted([*entries, *rng.sample(sorted(set(clues) - set(entries)), rng.randint(*self.spare))])
        starts = sorted({cells[0] for cells in entries.values()})
        asked = "\n".join(
            f"{starts.index(first) + 1} {'across' if first[0] == second[0] else 'down'}: {clues[word]}"
            for word, (first, second, *_) in entries.items()
        )
        prompt = data["crossword"].format(words=", ".join(words), grid="\n".join(grid), clues=asked)
        rows = "\n".join("".join(filled.get((r, c), "#") for c in range(len(row))) for r, row in enumerate(grid))
        shape, meta = f"{len(grid)}x{len(grid[0])}", {"grid": grid, "words": words}
        return Problem("", self.base, prompt, rows, rows, float(len(entries)), shape, meta=meta)


def fill(entries: list[tuple[Cell, ...]], words: list[str], letters: Letters) -> Letters | None:
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


@dataclass(frozen=True)
class Poem(Generator):
    """Write a short poem under rules for its words, first letters, syllables or rhymes (difficulty: how many rules)."""

    base = reward = "poem"
    style = "plain"  # gold answers stand in tags
    lines: tuple[int, int] = number((2, 6), (2, 6), "how many lines, `4` or `2-6`")
    rules: tuple[int, int] = number((1, 4), (1, 4), "how many of the four kinds of rules")

    def draw(self, rng: random.Random) -> Problem:
        data, count = table("words"), rng.randint(*self.lines)
        spelt = rng.choice([word for word in data["acrostics"] if len(word) == count] or [""])
        scheme = rng.choice([scheme for scheme in data["schemes"] if len(scheme) == count])
        families = dict(zip(sorted(set(scheme)), rng.sample(data["rhymes"], len(set(scheme))), strict=True))
        ends = {letter: rng.sample(family, scheme.count(letter)) for letter, family in families.items()}
        openers = [rng.choice([x for x in data["openers"] if x.startswith(spelt[k : k + 1])]) for k in range(count)]
        nouns, verbs, middles = (rng.sample(data[kind], count) for kind in ("nouns", "verbs", "middles"))
        parts = zip(openers, nouns, verbs, middles, scheme, strict=True)
        verses = [
            f"{opener} {noun} {verb} {middle} the {ends[mark].pop()}" for opener, noun, verb, middle, mark in parts
        ]
        kinds: dict[str, Any] = {
            "words": sorted(verse.split()[-1] for verse in rng.sample(verses, rng.randint(1, 2))),
            "acrostic": "".join(verse[0] for verse in verses),
            "syllables": [min(syllables(verse.split())) for verse in verses],
            "rhyme": scheme,
        }
        kept = rng.sample(sorted(kinds), rng.randint(*self.rules))
        rules = {kind: rule for kind, rule in kinds.items() if kind in kept}
        told = {kind: ", ".join(map(str, rule)) if isinstance(rule, list) else rule for kind, rule in rules.items()}
        asked = " ".join(data["rules"][kind].format(rule) for kind, rule in told.items())
        prompt, key, meta = data["poem"].format(lines=count, rules=asked), f"{count} {asked}", {"lines": count, **rules}
        return Problem("", self.base, prompt, "\n".join(verses), key, float(len(rules)), "+".join(rules), meta=meta)


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
