"""Numbers as a reader wants them: few digits, SI prefixes, intervals, spans of time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
NONE, MINUS, TIMES = "\u2013", "\u2212", "\u00d7"
THIN = "\u202f"  # between a number and its unit: a line never breaks there


def number(value: Any) -> str:
    """At most three significant digits (1,234, 12.3, 0.0123), powers of ten where they are shorter, a dash for none."""
    if value is None or not math.isfinite(value):
        return NONE
    size = abs(value)
    if size and not 1e-4 <= size < 1e6:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{_trim(mantissa)} {TIMES} 10{str(int(exponent)).translate(SUPERSCRIPTS)}"
    digits = max(0, 2 - math.floor(math.log10(size))) if size else 0
    return _trim(f"{value:,.{digits}f}")


def si(value: float, unit: str) -> str:
    """A quantity with the prefix that leaves one to three digits before the point: 466 GFLOP, 20.3 ktokens."""
    power = min(len(PREFIXES) - 1, int(math.log10(value) // 3)) if value >= 1 else 0
    scaled = value / 1000**power
    digits = 0 if scaled >= 99.95 or power == 0 else 1
    return f"{scaled:.{digits}f}{THIN}{PREFIXES[power]}{unit}"


def share(value: Any) -> str:
    """A share of one in percent."""
    return NONE if value is None else f"{number(100 * value)}{THIN}%"


def duration(seconds: float) -> str:
    """A span of time in its two largest units."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{THIN}s"
    if whole < 3600:
        return f"{whole // 60}{THIN}min {whole % 60}{THIN}s"
    return f"{whole // 3600}{THIN}h {whole % 3600 // 60}{THIN}min"


def accuracy(figure: Mapping[str, Any]) -> str:
    """pass@1 with the digits that its interval allows."""
    return f"{figure['pass@1']:.{_digits(figure['ci95'])}f}"


def interval(figure: Mapping[str, Any]) -> str:
    """The 95 % interval of a pass@1, in words."""
    digits = _digits(figure["ci95"])
    low, high = figure["ci95"]
    return f"{low:.{digits}f} to {high:.{digits}f}"


def points(value: float) -> str:
    """A difference of accuracies in percentage points."""
    return f"{100 * value:+.1f}".replace("-", MINUS)


def _trim(text: str) -> str:
    """Without zeros behind the last digit that says something; with a minus sign rather than a hyphen."""
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", MINUS)


def _digits(ci95: Sequence[float]) -> int:
    """Two, and three where the interval is narrower than two points."""
    return 3 if ci95[1] - ci95[0] < 0.02 else 2
