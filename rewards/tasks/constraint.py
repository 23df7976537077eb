"""Crosswords: a small grid, clues, a list of all entries. Poems: the rules are read off one made from templates."""

import random
from dataclasses import dataclass
from typing import Any

from rewards import table
from rewards.constraint import slots, syllables
from rewards.tasks.base import Generator, number
from rewards.types import Problem

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
