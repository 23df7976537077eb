"""A number with its unit: exact rationals, units through pint, and no tolerance but the problem's.
What a model wrote reaches pint only as names, one-digit exponents and * / ( ): its parser would work out `9**9**9`."""

import re
from decimal import ROUND_HALF_UP, Context, Decimal
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

from rewards import table
from rewards.answer import as_text, final_answer
from rewards.errors import BadInput
from rewards.types import Problem, Score

MAX_LENGTH, MAX_UNIT = 200, 60  # characters of an answer and of its unit: they bound the digits of exact arithmetic
_TABLE = table("numeric")
_CHARACTERS, _ALIASES = str.maketrans(_TABLE["characters"]), _TABLE["units"]
_REWRITES = [(re.compile(old), new) for old, new in _TABLE["rewrites"]]
_NUMBER = re.compile(
    r"(?a)\s*([+-]?)\s*(?:(?:(\d+) +)?(\d+) ?/ ?(\d+)|((?:\d{1,3}(?:[ ,]\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+)"
    r"(?:[eE]([+-]?\d{1,3})(?!\d)|\s*[*x·]\s*10\^([+-]?\d{1,3}))?|10\^([+-]?\d{1,3}))(?![\d.,^])"
)
_NAME = r"([A-Za-zµΩÅ°%‰]+)(?:\^?([+-]?[1-9])(?!\d))?"
_TOKEN = re.compile(rf"{_NAME}|[*·() ]|/(?!\s*/)|1(?=\s*/)", re.ASCII)


def numeric(response: str, problem: Problem) -> Score:
    """Whether the final answer is the reference quantity, in any compatible unit.
    Reads rel_tol, abs_tol, sig_figs (one that holds is enough; none: exactly equal) and unit from `meta`: bare numbers
    are in `unit`, abs_tol too. Raises BadInput for a reference, unit or tolerance that can't be read."""
    asked = problem.meta.get("unit")
    unit = read_unit(tidy(str(asked or "")))
    reference = None if unit is None else read(tidy(as_text(problem.answer)), unit)
    target = unit if asked or reference is None else reference.units
    if reference is None or not reference.is_compatible_with(target):
        raise BadInput(f"problem {problem.id!r}: answer {problem.answer!r} in unit {asked!r} is no quantity of it")
    answer = final_answer(response)
    if answer is None or len(answer) > MAX_LENGTH:
        return Score(0.0, False, "unparsed", detail="no final answer, or one too long for a number")
    found = [read(part, unit, target) for part in re.split("[=≈]", tidy(answer))]
    if found[-1] is None:
        return Score(0.0, False, "unparsed", detail=f"{answer[:80]!r} is no number with a unit")
    correct = all(  # "x = 1 km = 1000 m": whatever is a quantity must be right
        q is None or (q.is_compatible_with(target) and close(q.m_as(target), reference.m_as(target), problem.meta))
        for q in found
    )
    return Score(float(correct), correct, "ok" if correct else "wrong", detail=f"answered {answer[:80]!r}")


def close(value: Fraction, reference: Fraction, meta: dict[str, Any]) -> bool:
    """Exactly equal, or so within one of the tolerances in `meta`. Raises BadInput for one that makes no sense."""
    limits = []
    for name, kinds in (("rel_tol", (int, float)), ("abs_tol", (int, float)), ("sig_figs", int)):
        given = meta.get(name) or 0
        if isinstance(given, bool) or not isinstance(given, kinds) or not 0 <= given < 1e300:
            raise BadInput(f"{name} {given!r} is not a {'whole ' * (kinds is int)}number from 0 up")
        limits.append(Fraction(str(min(given, 50) if kinds is int else given)))  # 0.01 is 1/100
    relative, absolute, figures = limits
    within = abs(value - reference) <= max(relative * abs(reference), absolute)
    return within or (figures > 0 and round_figures(value, int(figures)) == round_figures(reference, int(figures)))


def round_figures(value: Fraction, figures: int) -> Fraction:
    """Rounded to so many significant figures, halves away from zero; exact."""
    context = Context(prec=figures, rounding=ROUND_HALF_UP)
    return Fraction(context.divide(Decimal(value.numerator), Decimal(value.denominator)))


def tidy(text: str) -> str:
    """LaTeX, typography and words ("square", "per") in the plain form that `read` and `read_unit` know."""
    text = re.sub("([⁺⁻⁰¹²³⁴-⁹]+)", r"^\1", text).translate(_CHARACTERS)
    for pattern, new in _REWRITES:
        text = pattern.sub(new, text)
    return text.strip()


def read(text: str, default: Any, target: Any = None) -> Any:
    """The quantity that a tidied text is, exactly, or None. A bare number is in `default`."""
    match = _NUMBER.match(text)
    if match is None or (match[4] and not int(match[4])):
        return None
    sign, whole, above, below, digits, *powers = match.groups("")
    value = Fraction(re.sub("[ ,]", "", digits) or 1) * Fraction(10) ** int("".join(powers) or 0)
    value = int(whole or 0) + Fraction(int(above), int(below)) if below else value
    rest = text[match.end() :].strip()
    thermal = target is not None and dict(target.dimensionality) == {"[temperature]": 1}
    unit = read_unit(rest, thermal) if rest else default
    return None if unit is None else registry().Quantity(-value if sign == "-" else value, unit)


@lru_cache(10_000)
def read_unit(text: str, thermal: bool = False) -> Any:
    """The pint unit of a tidied text, or None. What blanks or dots join behind a slash is below it: J/mol K."""
    if len(text) > MAX_UNIT or _TOKEN.sub("", text):
        return None

    def known(match: re.Match[str]) -> str:
        # where a temperature is asked for, C and F are degrees, not coulomb and farad
        name = f"deg{match[1]}" if thermal and match[1] in "CF" else _ALIASES.get(match[1], match[1])
        return f"({name if '*' in name or name in registry() else name.lower()})**{match[2] or 1} "

    try:
        below = re.sub(r"/([^/*()]+)", r"/(\1)", f"1{text}" if text.startswith("/") else text)
        unit = registry().parse_units(re.sub(_NAME, known, below).replace("·", " "))
        exact = isinstance(registry().Quantity(Fraction(1), unit).to_base_units().magnitude, Fraction)
        return unit if exact else None  # decibels and the like
    except Exception:  # pint raises a dozen kinds for words that are no unit, and for operators out of place
        return None


@cache
def registry() -> Any:
    """pint's units with exact factors."""
    import pint

    return pint.UnitRegistry(non_int_type=Fraction)


numeric.warm_up = registry  # type: ignore[attr-defined]  # pint loads slowly, on no item's clock
