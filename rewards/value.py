"""Trees of rewards.latex as numbers: exact rationals as long as possible, then mpmath to 60 digits, all bounded."""

from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cache
from math import comb, factorial
from typing import Any
from zlib import crc32

from rewards.latex import FUNCTIONS, Node, NotRead, TooBig

MAX_BITS = 25_000  # of an exact rational (2006! has 19,000), and of any other number's binary exponent
MAX_FACTORIAL = 3000
DIGITS = (60, 120)  # what differs slightly to 60 digits must differ as much to 120
POINTS = 4  # where expressions in variables are compared
Value = Any  # Fraction, or mpf or mpc of a context


def same_value(a: Node, b: Node) -> bool:
    """Equal at every point. 9 % is 9 and 0.09; a decimal of six places is what it rounds. Raises NotRead, TooBig."""
    percent, other = (a, b) if a[0] == "%" else (b, a)
    if percent == ("%", other) and other[0] == "n" and other[2] == 0:
        return True
    if names(a) | names(b):
        return all(_close(a, b, point) for point in range(POINTS))
    if _close(a, b, 0):
        return True
    for decimal, exact in ((a, b), (b, a)):  # six places and five figures at least may be how endless decimals begin
        if decimal[0] == "n" != exact[0] and decimal[2] >= 6 and abs(decimal[1]) * 10 ** decimal[2] >= 10_000:
            value, unit = evaluate(exact, 0, context(DIGITS[0])), Fraction(1, 10 ** decimal[2])
            endless = not isinstance(value, Fraction) or (value / unit).denominator > 1
            return endless and bool(abs(context(DIGITS[0]).convert(value) - decimal[1]) < min(5e-7, float(unit)))
    return False


def proportional(sign: str, a: Node, b: Node) -> bool:
    """Whether a is b times a constant, positive for an inequality's sign: then `a > 0` says what `b > 0` says."""
    mp = context(DIGITS[0])
    x, y = evaluate(a, 0, mp), evaluate(b, 0, mp)
    if names(a) != names(b) or not (names(a) and x and y):
        return _close(a, b, 0)
    if sign not in ("=", "!=") and mp.re(mp.convert(x) / mp.convert(y)) <= 0:
        return False
    return all(_close(("*", a, ("value", y)), ("*", b, ("value", x)), point) for point in range(1, POINTS))


def names(node: Node) -> set[str]:
    """The variables in a tree."""
    if node[0] == "s":
        return {node[1]}
    return set() if node[0] in ("n", "value") else set().union(*map(names, node[1:]))


def _close(a: Node, b: Node, point: int) -> bool:
    """Equal: exactly where both are rational, else to 40 digits, or as a difference that vanishes with precision."""
    gaps = []
    for digits in DIGITS:
        mp = context(digits)
        x, y = evaluate(a, point, mp), evaluate(b, point, mp)
        if isinstance(x, Fraction) and isinstance(y, Fraction):
            return x == y
        x, y = mp.convert(x), mp.convert(y)
        if x == y or mp.isinf(x) or mp.isinf(y):
            return bool(x == y)
        gaps.append(abs(x - y))
        size = max(abs(x), abs(y))
        if gaps[-1] <= size * mp.mpf(10) ** (20 - digits):
            return True
        if gaps[-1] > 1e-20 and gaps[-1] > size * 1e-8:
            return False
    return bool(gaps[1] < gaps[0] * 1e-30)


@cache
def context(digits: int) -> Any:
    """Mpmath's functions at so many decimal digits."""
    from mpmath import MPContext

    mp = MPContext()
    mp.dps = digits
    return mp


def evaluate(node: Node, point: int, mp: Any, known: Mapping[str, Value] = {}) -> Value:
    """The value of an expression where each unknown variable has its place of a point. Raises NotRead and TooBig."""
    kind = node[0]
    if kind == "s" and node[1] in known:
        return known[node[1]]
    if kind == "s":
        seed = crc32(f"{point} {node[1]}".encode("utf-8", "surrogatepass"))
        place = Fraction(101 + seed % 900, 1009 if point == 1 else 97)  # below 1 in point 1
        return -place if point > 1 and seed >> 20 & 1 else place
    if kind in ("n", "value"):
        return node[1]
    if kind not in OPERATIONS:
        raise NotRead(kind)
    values = [evaluate(child, point, mp, known) for child in node[1:]]
    if not all(isinstance(value, Fraction) for value in values):
        values = [mp.convert(value) for value in values]
    try:
        operation = OPERATIONS[kind]
        value = getattr(mp, operation)(*values) if isinstance(operation, str) else operation(mp, *values)
    except (ValueError, ArithmeticError, TypeError, mp.NoConvergence) as error:  # 1/0, a pole, ⌊i⌋
        raise TooBig(str(error)) from None
    if isinstance(value, Fraction):
        size = value.numerator.bit_length() + value.denominator.bit_length()
    else:
        size = MAX_BITS + 1 if mp.isnan(value) else 0 if not value or mp.isinf(value) else abs(mp.mag(value))
    if size > MAX_BITS:
        raise TooBig(kind)
    return value


def _power(mp: Any, base: Value, exponent: Value) -> Value:
    exact = isinstance(exponent, Fraction) and exponent.denominator == 1
    bits = max(base.numerator.bit_length(), base.denominator.bit_length()) if exact else base and abs(mp.mag(base))
    if abs(exponent) * bits > MAX_BITS:
        raise ValueError("too high a power")
    return base**exponent.numerator if exact else mp.power(base, exponent)


def _counting(mp: Any, name: str, exact: Callable[..., int], *values: Value) -> Value:
    """n! or a binomial coefficient: exact on natural numbers, by the gamma function elsewhere."""
    if any(abs(value) > MAX_FACTORIAL for value in values):
        raise ValueError("too large a factorial")
    natural = all(isinstance(value, Fraction) and value.denominator == 1 and value >= 0 for value in values)
    return Fraction(exact(*map(int, values))) if natural else getattr(mp, name)(*values)


_THEIRS = {"log": "log10", "lg": "log10", "surd": "sqrt"}
OPERATIONS: dict[str, Any] = {  # a function of a context, and either rationals alone or its numbers alone; or its name
    **{name: _THEIRS.get(name, name.replace("arc", "a")) for name in (*FUNCTIONS, "floor", "ceil")},
    "+": lambda mp, a, b: a + b,
    "-": lambda mp, a, b: a - b,
    "*": lambda mp, a, b: a * b,
    "/": lambda mp, a, b: a / b,
    "neg": lambda mp, a: -a,
    "abs": lambda mp, a: abs(a),
    "%": lambda mp, a: a / 100,
    "°": lambda mp, degrees: mp.convert(degrees) * mp.pi / 180,
    "^": _power,
    "!": lambda mp, n: _counting(mp, "factorial", factorial, n),
    "binom": lambda mp, n, k: _counting(mp, "binomial", comb, n, k),
    "pi": lambda mp: +mp.pi,
    "e": lambda mp: +mp.e,
    "i": lambda mp: mp.mpc(0, 1),
    "inf": lambda mp: mp.inf,
}
