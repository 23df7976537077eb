"""A second opinion on answers judged wrong: where two verifiers disagree a person should look. See docs/rewards.md."""

import hashlib
import re
from typing import Any

from rewards.answer import CLOSE, as_text, boxed
from rewards.types import Problem

SECOND = "rewards.audit:second_opinion"
AUDITED = ("exact_match", "math", "numeric")  # rewards that compare with a reference answer
TAIL = 2000  # characters at a response's end that the second verifier reads
_MATHS = re.compile(r"[\d\\=^+]|^\w$")
_SAID = re.compile(r":|\bis\b")


def auditable(spec: Any, problem: Problem) -> bool:
    """Whether a second verifier makes sense: there is a reference answer, in no unit (this one knows none)."""
    known = isinstance(spec, str) and spec in AUDITED and "unit" not in problem.meta
    return known and isinstance(problem.answer, str | int | float) and not isinstance(problem.answer, bool)


def chosen(chain_id: str, share: float) -> bool:
    """Whether a chain is in the sample: by a hash of its id, so that a run done again audits the same ones."""
    digest = hashlib.blake2b(chain_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def second_opinion(response: str, problem: Problem) -> bool | None:
    """Whether the response is right as math-verify alone reads it; None where it can't read the reference.
    Words, which it would take for products of letters, are compared without case and punctuation."""
    text, reference = response.rpartition(CLOSE)[2][-TAIL:], as_text(problem.answer)
    if not _MATHS.search(reference):  # the last box, else what stands behind the last colon or "is" of the last line
        said = (boxed(text) or _SAID.split(text.rstrip().rpartition("\n")[2]))[-1]
        bare = [re.sub(r"\\text\b|[\W_]+", "", words).casefold() for words in (said, reference)]
        return bare[0] == bare[1]
    from math_verify import parse, verify

    gold = parse(f"${reference}$")
    if all(isinstance(piece, str) for piece in gold):  # the text alone: nothing was understood
        return None
    return verify(gold, parse(text))
