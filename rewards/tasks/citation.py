"""Questions about small documents on invented people; the answer must be quoted from where it stands."""

import random
import re
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rewards import table
from rewards.answer import after_thinking, as_text, final_answer, same, squeeze
from rewards.errors import BadInput
from rewards.tasks.base import Generator, number
from rewards.types import Problem, Score

DATA = table("citation")
MAX_QUOTES = 50
_QUOTE = re.compile(r'(?:"([^"]*)"|“([^“”]*)”)(?:\s?\[([^\[\]\n]{1,40})\])?')
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


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


def citation(response: str, problem: Problem) -> Score:
    """Whether the answer is right and quoted: every quotation is verbatim, and one holds the evidence. Reads
    `documents` (list, cited as [1], [2], …; or {id: text}) and `evidence` (text or list; null: the answer) from `meta`.
    A quotation stands for the sentence that it is in, if it is in one only. Raises BadInput without documents."""
    given: Any = problem.meta.get("documents")
    named = given if isinstance(given, dict) else dict(enumerate(given, 1)) if isinstance(given, list) else {}
    if not named or not all(isinstance(text, str) for text in named.values()):
        raise BadInput(f"problem {problem.id!r}: 'documents' is not a list of texts or {{id: text}}; citation reads it")
    documents = {str(name): squeeze(text) for name, text in named.items()}
    reference = as_text(problem.answer)
    text, answer = after_thinking(response), final_answer(response)
    if text is None or answer is None:
        return Score(0.0, False, "unparsed", detail="no final answer")
    quotes = [(quote[1] or quote[2] or "", quote[3]) for quote in islice(_QUOTE.finditer(text), MAX_QUOTES + 1)]
    context = [_context(squeeze(quote), cited, documents) for quote, cited in quotes]
    closed = text.count('"') % 2 == 0 and text.count("“") == text.count("”")
    verbatim = 0 < len(quotes) <= MAX_QUOTES and closed and all(context)
    evidence = problem.meta.get("evidence") or reference
    wanted = "|".join(re.escape(squeeze(e)) for e in ([evidence] if isinstance(evidence, str) else evidence))
    supported = verbatim and any(re.search(rf"(?i)(?<!\w)(?:{wanted})(?!\w)", quoted) for quoted in context)
    right = same(answer.strip('"“”').casefold(), reference.casefold())
    correct = right and supported
    parts = {"answer": float(right), "verbatim": float(verbatim), "supported": float(supported)}
    return Score(float(correct), correct, "ok" if correct else "wrong", parts)


def _context(quote: str, cited: str | None, documents: dict[str, str]) -> str:
    """The only sentence that a quotation is in, else the quotation; empty where no document (or the cited) has it."""
    texts = [documents.get(cited.strip(), "")] if cited else documents.values()
    sentences = [sentence for text in texts for sentence in _SENTENCE.split(text) if quote in sentence]
    return sentences[0] if len(sentences) == 1 else quote if any(quote in text for text in texts) else ""
