"""Numbers as a reader wants them: few digits, SI prefixes, spans of time."""

import math
from typing import Any

from matplotlib.ticker import EngFormatter

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
NONE, MINUS, TIMES = "\u2013", "\u2212", "\u00d7"
THIN = "\u202f"  # between a number and its unit: a line never breaks there


def number(value: Any) -> str:
    """At most three significant digits (1,234, 12.3, 0.0123), powers of ten where they are shorter, a dash for none."""
    if value is None or not math.isfinite(value):
        return NONE
    size, power = abs(value), ""
    digits = max(0, 2 - math.floor(math.log10(size))) if size else 0
    text = f"{value:,.{digits}f}"
    if size and not 1e-4 <= size < 1e6:
        text, exponent = f"{value:.1e}".split("e")
        power = f" {TIMES} 10{str(int(exponent)).translate(SUPERSCRIPTS)}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", MINUS) + power


def si(value: float, unit: str = "") -> str:
    """A quantity with the prefix that leaves one to three digits before the point: 466 GFLOP, 20.3 k."""
    return EngFormatter(unit, sep=THIN, useMathText=False)(float(f"{value:.3g}"))


def share(value: float | None) -> str:
    """A share of one in percent."""
    return NONE if value is None else f"{number(100 * value)}{THIN}%"


def points(value: float) -> str:
    """A difference of accuracies in percentage points."""
    return f"{100 * value:+.1f}".replace("-", MINUS)


def duration(seconds: float) -> str:
    """A span of time in its two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{THIN}h {minutes}{THIN}min" if hours else f"{minutes}{THIN}min {rest}{THIN}s"
