"""Constrained poems: the rules are read off a poem made from templates, so that one poem at least keeps them."""

import random
from dataclasses import dataclass
from typing import Any

from rewards.constraint import syllables
from rewards.puzzle import table
from rewards.tasks.base import Generator, number
from rewards.types import Problem


@dataclass(frozen=True)
class Poem(Generator):
    """Write a short poem under rules for its words, first letters, syllables or rhymes (difficulty: how many rules)."""

    base = reward = "poem"
    lines: tuple[int, int] = number((2, 6), (2, 6), "how many lines, `4` or `2-6`")
    rules: tuple[int, int] = number((1, 4), (1, 4), "how many of the four kinds of rules")

    def draw(self, rng: random.Random) -> Problem:
        data, count = table("words.yaml"), rng.randint(*self.lines)
        spelt = rng.choice([word for word in data["acrostics"] if len(word) == count] or [""])
        scheme = rng.choice([scheme for scheme in data["schemes"] if len(scheme) == count])
        verses = write(count, spelt, scheme, rng)
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
        return Problem(
            id="",
            task=self.base,
            prompt=data["poem"].format(lines=count, rules=asked),
            answer="\n".join(verses),
            key=f"{count} {asked}",
            difficulty=float(len(rules)),
            subtask="+".join(rules),
            meta={"lines": count, **rules},
        )

    def gold(self, problem: Problem) -> str:
        return f"<answer>\n{problem.answer}\n</answer>"


def write(count: int, spelt: str, scheme: str, rng: random.Random) -> list[str]:
    """Lines that begin with the letters of `spelt`, or with any, and rhyme by the scheme."""
    data = table("words.yaml")
    families = dict(zip(sorted(set(scheme)), rng.sample(data["rhymes"], len(set(scheme))), strict=True))
    ends = {letter: rng.sample(family, scheme.count(letter)) for letter, family in families.items()}
    openers = [rng.choice([x for x in data["openers"] if x.startswith(spelt[k : k + 1])]) for k in range(count)]
    nouns, verbs, middles = (rng.sample(data[kind], count) for kind in ("nouns", "verbs", "middles"))
    parts = zip(openers, nouns, verbs, middles, scheme, strict=True)
    return [f"{opener} {noun} {verb} {middle} the {ends[letter].pop()}" for opener, noun, verb, middle, letter in parts]
