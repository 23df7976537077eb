"""A second opinion on answers that were judged wrong: what one verifier fails to read, another may read.

Where the two disagree a person should look; docs/rewards.md says how the share of right answers that the first one
misses is estimated from that.
"""

import hashlib
import re
from typing import Any

from rewards.answer import CLOSE, boxed
from rewards.equality import as_text
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

    Words, which it would take for products of letters, are compared without case and punctuation.
    """
    text, reference = response.rpartition(CLOSE)[2][-TAIL:], as_text(problem.answer)
    if not _MATHS.search(reference):
        return _bare(_last_said(text)) == _bare(reference)
    from math_verify import parse, verify

    gold = parse(f"${reference}$")
    if all(isinstance(piece, str) for piece in gold):  # the text alone: nothing was understood
        return None
    return verify(gold, parse(text))


def _last_said(text: str) -> str:
    """The last box, else what stands behind the last colon or "is" of the last line."""
    return (boxed(text) or _SAID.split(text.rstrip().rpartition("\n")[2]))[-1]


def _bare(text: str) -> str:
    return re.sub(r"\\text\b|[\W_]+", "", text).casefold()
