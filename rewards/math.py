r"""Whether a final answer equals the reference as mathematics: exact wherever it can be, no loose tolerance. Same text;
exact numbers; same words; our own parse, by parts and values; only what it can't read goes to math-verify, which also
gives a second opinion on answers judged wrong: where two verifiers disagree a person should look."""

import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from rewards.answer import CLOSE, as_text, boxed, final_answers, number, squeeze, with_open_tag
from rewards.latex import NAMES, RELATIONS, Node, NotRead, TooBig, clean, read
from rewards.types import Problem, Score
from rewards.value import names, proportional, same_value

MAX_ANSWERS = 20  # of one hedging sentence that are compared
MAX_FALLBACK = 300  # characters that math-verify is given
_WORDS = re.compile(r"[^\W\d_](?:[^\W\d_]|[' -])*")
_PROSE = re.compile(r"(?<![\\{a-zA-Z])[a-zA-Z]{3,}")
_FIERCE = re.compile(  # endless, too deep, or near zero
    r"!|\^[^,+=]{0,40}\^|\d{30}|\^\{?\d{3}|(?:[(\[{][^()\[\]{}]*){12}|\\(?:prod|binom)(?![a-z])"
)
_BASED = re.compile(r"(\d+)_\{?(\d+)\}?", re.ASCII)
_TURNED = {"<": ">", "<=": ">="}
SECOND = "rewards.math:second_opinion"
AUDITED = ("exact_match", "math", "numeric")  # rewards that compare with a reference answer
TAIL = 2000  # characters at a response's end that the second verifier reads
_MATHS = re.compile(r"[\d\\=^+]|^\w$")
_SAID = re.compile(r":|\bis\b")
Verdict = bool | None  # None: our own grammar can't tell


def math(response: str, problem: Problem) -> Score:
    """Whether the final answer equals `problem.answer`; `rel_tol` and `abs_tol` in `problem.meta` hold for decimals."""
    import_module("math_verify")  # in the pool's warm-up call, not on the clock of the first item that needs it
    answers = final_answers(with_open_tag(response, problem.prompt))
    if not answers:
        return Score(0.0, False, "unparsed", detail="no final answer")
    gold = problem.answer
    reference = ", ".join(map(as_text, gold)) if isinstance(gold, list) else as_text(gold)
    tolerance = [float(problem.meta.get(name) or 0) for name in ("rel_tol", "abs_tol")]
    if len(answers) <= MAX_ANSWERS and equal(reference, ", ".join(answers), *tolerance):
        return Score(1.0, True, "ok")
    return Score(0.0, False, "wrong", detail=f"answered {' or '.join(answers)[:80]!r}")


def equal(reference: str, answer: str, rel_tol: float = 0.0, abs_tol: float = 0.0) -> bool:
    """Whether two texts say the same. What is too big or too deep to compare is different."""
    if squeeze(reference) == squeeze(answer):
        return True
    left, right = number(reference), number(answer)
    if left is not None and right is not None and not (rel_tol or abs_tol or "/" in reference + answer):
        return left == right
    try:
        texts = clean(reference), clean(answer)
        words = [_words(text) for text in texts]
        if texts[0] == texts[1] or any(words):
            return bool(texts[0]) and words[0] == words[1]
        if (based := _BASED.fullmatch(texts[0])) and int(max(based[1])) < int(based[2]) and based[1] == texts[1]:
            return True  # 1011_2: an answer may leave out the base that the question names
        verdicts: list[Verdict] = []
        try:
            for thousands in (True, False) if "," in "".join(texts) else (True,):
                (a, unit), (b, other) = (read(text, thousands) for text in texts)
                short, long = sorted((unit.rstrip("s"), other.rstrip("s")), key=len)
                letters = iter(long)  # cm is centimeters, in is inches: the same letters in this order
                brief = len(long) > 2 and short[:1] == long[:1] and all(char in letters for char in short)
                if unit and other and short != long and not brief:
                    return False
                if (rel_tol or abs_tol) and a[0] == b[0] == "n" and a[2]:  # a[2]: no tolerance on an integer
                    return bool(abs(a[1] - b[1]) <= max(rel_tol * abs(a[1]), abs_tol))
                verdicts.append(_same(a, b))
        except NotRead:
            return _ask_math_verify(*texts)
        return any(verdicts) or (None in verdicts and _ask_math_verify(*texts))
    except (TooBig, RecursionError):
        return False


def _words(text: str) -> str | None:  # in lower case; None for anything that may be mathematics
    plain = re.sub(r"\\text\{([^{}]*)\}", r"\1", text).strip().lower()
    wordy = any(word[1:] and set("aeiouy") & set(word) for word in plain.split())
    return squeeze(plain) if wordy and _WORDS.fullmatch(plain) and not NAMES & set(plain.split()) else None


def _same(a: Node, b: Node) -> Verdict:
    """Whether two trees are equal, part by part. Symmetric."""
    a, b = _core(a), _core(b)
    kinds = {a[0], b[0]}
    if a == b:
        return True
    if kinds & RELATIONS:
        return _relations(a, b)
    if kinds == {"matrix"}:
        if [len(row) for row in a[1:]] != [len(row) for row in b[1:]]:
            return False
        a, b = (("()", *sum(node[1:], ())) for node in (a, b))  # all entries
    if kinds & {"matrix", "union"} and len(kinds) > 1:
        return None
    if kinds <= {"list", "set"} or kinds == {"union"}:
        return _unordered(_same, a[1:], b[1:])
    structures = [node[0] in ("list", "set", "union") or node[0][0] in "([" for node in (a, b)]
    if not any(structures):
        return same_value(a, b)
    if len(a) != len(b) or not all(structures) or (len(kinds) > 1 and len(a) == 3 and kinds & {"[]", "[)", "(]"}):
        return False
    verdicts = [_same(one, two) for one, two in zip(a[1:], b[1:], strict=True)]
    return False if False in verdicts else None if None in verdicts else True


def _core(node: Node) -> Node:  # without `x in`, degrees, or the braces around a single item
    while node[0] in ("in", "°") or (node[0] in ("set", "list") and len(node) == 2):
        node = node[-1]
    return node


def _unordered(same: Callable[[Any, Any], Verdict], ours: Sequence[Any], theirs: Sequence[Any]) -> Verdict:
    rest, unsure = list(theirs), False
    for a in ours if len(ours) == len(theirs) else ():
        verdicts = [same(a, b) for b in rest]
        if True in verdicts:
            del rest[verdicts.index(True)]
        unsure |= True not in verdicts and None in verdicts
    return not rest or (None if unsure else False)


def _relations(a: Node, b: Node) -> Verdict:
    """Equations and inequalities against each other, or `x = 5` against 5."""
    (name, value), (other, against) = _assigned(a), _assigned(b)
    if not (a[0] in RELATIONS and b[0] in RELATIONS):
        if interval := _interval(a if a[0] in RELATIONS else b):
            return a[0] in RELATIONS and _same(interval, b)  # as math-verify has it: not the other way round
        return None if name is other is None else _same(value, against)
    if name is not None and name == other:
        return _same(value, against)
    found = _unordered(lambda one, two: one[0] == two[0] and proportional(one[0], one[1], two[1]), _chain(a), _chain(b))
    return None if found is False and a[0] == b[0] == "=" and None in (name, other) else found


def _assigned(node: Node) -> tuple[Node | None, Node]:
    """The left side and the value of `x = … = value`; None for a side with more than names or constants in it."""
    first = node
    while first[0] == "=":
        first = first[1]
    return (first, node[2]) if node[0] == "=" and (not names(first) or _only_names(first)) else (None, node)


def _only_names(node: Node) -> bool:
    return node[0] == "s" or (node[0] in ("*", "/") and all(map(_only_names, node[1:])))


def _interval(node: Node) -> Node | None:  # that `a < x <= b` or `x > a` describes
    brackets, bounds = ["(", ")"], [("neg", ("inf",)), ("inf",)]
    for sign, (_, more, less) in _chain(node):
        end = 0 if more[0] == "s" else 1
        if sign not in (">", ">=") or more[0] == less[0] or "s" not in (more[0], less[0]):
            return None
        brackets[end], bounds[end] = "[]"[end] if sign == ">=" else "()"[end], (less, more)[end]
    return ("".join(brackets), *bounds)


def _chain(node: Node) -> list[tuple[str, Node]]:  # (sign, difference of its sides) each, with < and <= turned round
    sign, left, right = node
    before = _chain(left) if left[0] in RELATIONS else []
    more, less = (right, left[2] if before else left) if sign in _TURNED else (left[2] if before else left, right)
    return [*before, (str(_TURNED.get(sign, sign)), ("-", more, less))]


def _ask_math_verify(reference: str, answer: str) -> bool:
    """Its verdict on texts of moderate size; numbers must agree in relation to their size too."""
    prose = _PROSE.search(answer) and not _PROSE.search(reference)  # it would pick a number out of the words
    if prose or any(len(text) > MAX_FALLBACK or _FIERCE.search(text) for text in (reference, answer)):
        return False
    from math_verify import LatexExtractionConfig, parse, verify
    from sympy import Expr, N

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns that its own time-outs are off
    how = {"extraction_config": [LatexExtractionConfig()], "parsing_timeout": None}
    try:
        gold, found = parse(f"${reference}$", **how), parse(f"${answer}$", **how)
        if not (gold and found and verify(gold, found, timeout_seconds=None)):
            return False
        if not all(isinstance(x, Expr) and x.is_number for x in (gold[0], found[0])):
            return True
        a, b = N(gold[0], 30), N(found[0], 30)
        return a == b or bool(abs(a - b) <= 1e-6 * max(abs(a), abs(b)))
    except (MemoryError, RecursionError):
        raise
    except Exception:  # whatever SymPy makes of a weird text is no failure of ours
        return False


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
