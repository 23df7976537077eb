"""Questions about small documents on invented people; the answer must be quoted from where it stands."""

import random
from dataclasses import dataclass

from rewards import table
from rewards.tasks.base import Generator, number
from rewards.types import Problem

DATA = table("citation")


@dataclass(frozen=True)
class Citation(Generator):
    """Answer a question from documents, and quote the sentence that says so (difficulty: how many documents)."""

    base = reward = "citation"
    documents: tuple[int, int] = number((2, 4), (1, 8), "how many documents, `3` or `2-4`")

    def draw(self, rng: random.Random) -> Problem:
        count = rng.randint(*self.documents)
        told = [_tell(name, rng) for name in rng.sample(DATA["names"].split(), count)]
        documents = [" ".join(sentence for sentence, _, _ in facts) for facts in told]
        cited = rng.randrange(count)
        evidence, question, answer = rng.choice(told[cited])
        listed = "\n".join(f"[{n}] {text}" for n, text in enumerate(documents, 1))
        meta = {"documents": documents, "evidence": evidence, "cited": cited + 1}
        text = f"{listed}\n\n{question}"
        return Problem("", self.base, f"{text} {table('prompts')['citation']}", answer, text, float(count), meta=meta)

    def gold(self, problem: Problem) -> str:
        meta = problem.meta
        return f'"{meta["evidence"]}" [{meta["cited"]}]\n<answer>{problem.answer}</answer>'


def _tell(name: str, rng: random.Random) -> list[tuple[str, str, str]]:
    """[(sentence, question, answer)] of three to six facts about a person."""
    facts, words = rng.sample(DATA["facts"], rng.randint(3, 6)), DATA["words"]
    answers = [str(rng.choice(words[of].split() if isinstance(of, str) else range(*of))) for _, _, of in facts]
    return [(s.format(a, name=name), q.format(name=name), a) for (s, q, _), a in zip(facts, answers, strict=True)]
