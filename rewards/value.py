"""Trees of rewards.latex as numbers: exact rationals as long as possible, then mpmath to 60 digits, all bounded."""

from collections.abc import Callable
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
Value = Any  # Fraction, or mpf or mpc of one of the two contexts


def same_value(a: Node, b: Node) -> bool:
    """Equal at every point. 9 % is 9 and 0.09; a decimal of six places is what it rounds. Raises NotRead, TooBig."""
    percent, other = (a, b) if a[0] == "%" else (b, a)
    if percent == ("%", other) and other[0] == "n" and other[2] == 0:
        return True
    if names(a) | names(b):
        return all(_close(a, b, point) for point in range(POINTS))
    return _close(a, b, 0) or _rounds(a, b) or _rounds(b, a)


def proportional(sign: str, a: Node, b: Node) -> bool:
    """Whether a is b times a constant, positive for an inequality's sign: then `a > 0` says what `b > 0` says."""
    mp = _mp(DIGITS[0])
    x, y = evaluate(a, 0, mp), evaluate(b, 0, mp)
    if names(a) != names(b) or not (names(a) and x and y):
        return _close(a, b, 0)
    if sign not in ("=", "!=") and mp.re(_plain(mp, x) / _plain(mp, y)) <= 0:
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
        mp = _mp(digits)
        x, y = evaluate(a, point, mp), evaluate(b, point, mp)
        if isinstance(x, Fraction) and isinstance(y, Fraction):
            return x == y
        x, y = _plain(mp, x), _plain(mp, y)
        if x == y or mp.isinf(x) or mp.isinf(y):
            return bool(x == y)
        gaps.append(abs(x - y))
        size = max(abs(x), abs(y))
        if gaps[-1] <= size * mp.mpf(10) ** (20 - digits):
            return True
        if gaps[-1] > 1e-20 and gaps[-1] > size * 1e-8:
            return False
    return bool(gaps[1] < gaps[0] * 1e-30)


def _rounds(decimal: Node, other: Node) -> bool:
    """Whether a decimal of at least six places and five figures is what the other's endless decimals begin with."""
    if decimal[0] != "n" or other[0] == "n" or decimal[2] < 6 or abs(decimal[1]) * 10 ** decimal[2] < 10_000:
        return False
    mp = _mp(DIGITS[0])
    value, unit = evaluate(other, 0, mp), Fraction(1, 10 ** decimal[2])
    if isinstance(value, Fraction) and (value / unit).denominator == 1:
        return False
    return bool(abs(_plain(mp, value) - _plain(mp, decimal[1])) < min(5e-7, float(unit)))


@cache
def _mp(digits: int) -> Any:
    from mpmath import MPContext

    context = MPContext()
    context.dps = digits
    return context


def evaluate(node: Node, point: int, mp: Any) -> Value:
    """The value of an expression with every variable at its place of a point. Raises NotRead and TooBig."""
    kind = node[0]
    if kind == "s":
        return _place(node[1], point)
    if kind in ("n", "value"):
        return node[1]
    if kind not in OPERATIONS:
        raise NotRead(kind)
    values = [evaluate(child, point, mp) for child in node[1:]]
    try:
        value = OPERATIONS[kind](mp, *values)
    except (ValueError, ArithmeticError, TypeError, mp.NoConvergence) as error:  # 1/0, a pole, ⌊i⌋
        raise TooBig(str(error)) from None
    if isinstance(value, Fraction):
        size = value.numerator.bit_length() + value.denominator.bit_length()
    else:
        size = MAX_BITS + 1 if mp.isnan(value) else 0 if not value or mp.isinf(value) else abs(mp.mag(value))
    if size > MAX_BITS:
        raise TooBig(kind)
    return value


@cache
def _place(name: str, point: int) -> Fraction:
    seed = crc32(f"{point} {name}".encode("utf-8", "surrogatepass"))
    place = Fraction(101 + seed % 900, 1009 if point == 1 else 97)  # below 1 in point 1
    return -place if point > 1 and seed >> 20 & 1 else place


def _plain(mp: Any, value: Value) -> Any:
    return mp.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _either(operation: Callable[..., Value]) -> Callable[..., Value]:
    """An operation that is exact on rationals, and in floating point where one value is not."""

    def operate(mp: Any, *values: Value) -> Value:
        exact = all(isinstance(value, Fraction) for value in values)
        return operation(*values) if exact else operation(*(_plain(mp, value) for value in values))

    return operate


def _power(mp: Any, base: Value, exponent: Value) -> Value:
    if isinstance(exponent, Fraction) and isinstance(base, Fraction) and exponent.denominator == 1:
        if abs(exponent) * max(base.numerator.bit_length(), base.denominator.bit_length()) > MAX_BITS:
            raise ValueError("too high a power")
        return base**exponent.numerator
    base, exponent = _plain(mp, base), _plain(mp, exponent)
    if base and abs(exponent) * abs(mp.mag(base)) > MAX_BITS:
        raise ValueError("too high a power")
    return mp.power(base, exponent)


def _counting(exact: Callable[..., int], name: str) -> Callable[..., Value]:
    """n! or a binomial coefficient: exact on natural numbers, by the gamma function elsewhere."""

    def operate(mp: Any, *values: Value) -> Value:
        if any(abs(value) > MAX_FACTORIAL for value in values):
            raise ValueError("too large a factorial")
        natural = all(isinstance(value, Fraction) and value.denominator == 1 and value >= 0 for value in values)
        return Fraction(exact(*map(int, values))) if natural else getattr(mp, name)(*(_plain(mp, v) for v in values))

    return operate


def _function(name: str) -> Callable[..., Value]:
    return lambda mp, value: getattr(mp, name)(_plain(mp, value))


_THEIRS = {"log": "log10", "lg": "log10", "surd": "sqrt"}
OPERATIONS: dict[str, Callable[..., Value]] = {
    **{name: _function(_THEIRS.get(name, name.replace("arc", "a"))) for name in [*FUNCTIONS, "floor", "ceil"]},
    "+": _either(lambda a, b: a + b),
    "-": _either(lambda a, b: a - b),
    "*": _either(lambda a, b: a * b),
    "/": _either(lambda a, b: a / b),
    "neg": _either(lambda a: -a),
    "abs": _either(abs),
    "%": _either(lambda a: a / 100),
    "°": lambda mp, degrees: _plain(mp, degrees) * mp.pi / 180,
    "^": _power,
    "!": _counting(factorial, "factorial"),
    "binom": _counting(comb, "binomial"),
    "pi": lambda mp: +mp.pi,
    "e": lambda mp: +mp.e,
    "i": lambda mp: mp.mpc(0, 1),
    "inf": lambda mp: mp.inf,
}
