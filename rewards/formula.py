"""Antiderivatives and polynomials as SymPy writes them, compared at points: nothing of SymPy sees an answer."""

import random
import re
from typing import Any

from rewards.latex import Node, NotRead, TooBig, clean, read
from rewards.value import context, evaluate, same_value

SPANS = {0.3: 3, 3.0: 4, 20.0: 16}  # points in each of so many parts of -span..span: an integrand may be real in few
_SPELLINGS = ((r"\ba(sin|cos|tan)\b", r"arc\1"), (r"\blog\b", "ln"), (r"\bE\b", "e"))


def integrates(answer: str, integrand: str, variable: str) -> bool:
    """Whether the derivative of `answer`, in which a constant C may stand, is the integrand wherever that is real."""
    mp, rng, agreed = context(40), random.Random(answer), 0  # nobody knows the points before the answer is written
    try:
        mine, given = tree(answer), tree(integrand)
    except (NotRead, TooBig):
        return False
    for point in (mp.mpf(span * (2 * rng.uniform(k, k + 1) / n - 1)) for span, n in SPANS.items() for k in range(n)):
        try:
            if mp.im(wanted := mp.convert(evaluate(put(given, variable, point), 0, mp))):
                continue
            gap = wanted - mp.diff(lambda x: mp.convert(evaluate(put(mine, variable, x), 0, mp)), point)
        except (NotRead, TooBig, ValueError, ArithmeticError):
            continue
        if not abs(gap) <= mp.mpf(10) ** -18 * (1 + abs(wanted)):
            return False
        agreed += 1
    return agreed >= 2


def same_polynomial(answer: str, gold: str) -> bool:
    """Whether a polynomial that is multiplied out, so without brackets, equals another."""
    try:
        return "(" not in answer and same_value(tree(gold), tree(answer)) is True
    except (NotRead, TooBig):
        return False


def tree(text: str) -> Node:
    """The tree of a formula in SymPy's spelling. Raises NotRead, TooBig."""
    for pattern, new in _SPELLINGS:
        text = re.sub(pattern, new, text)
    node, unit = read(clean(text))
    if unit:
        raise NotRead(unit)
    return node


def put(node: Node, variable: str, value: Any) -> Node:
    """The tree with a value for a variable."""
    if node == ("s", variable):
        return ("value", value)
    return tuple(put(part, variable, value) if isinstance(part, tuple) else part for part in node)
