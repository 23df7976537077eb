from __future__ import annotations

import time
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rewards.errors import BadInput
from rewards.numeric import numeric, registry, round_figures
from rewards.types import Problem, Score


def quantity(answer: Any, **meta: Any) -> Problem:
    return Problem("q", "jsonl", "?", answer, "k", meta=meta)


def verdict(text: str, answer: Any, **meta: Any) -> Score:
    return numeric(f"<answer>{text}</answer>", quantity(answer, **meta))


RIGHT: list[tuple[Any, dict[str, Any], str]] = [  # reference, meta, answer
    ("1/2", {}, "0.50"),
    ("0.5", {}, r"\frac{1}{2}"),
    ("0.5", {}, r"$\dfrac{1}{2}$"),
    ("2.5", {}, "2 1/2"),
    ("-2.5", {}, r"-2\frac{1}{2}"),
    (1234567, {}, "1,234,567"),
    (1234567, {}, "1{,}234{,}567"),
    (12000, {}, "12 000"),
    (12000, {}, "12\N{NARROW NO-BREAK SPACE}000"),
    (-5, {}, "\N{MINUS SIGN}5"),
    (5, {}, "+5"),
    (0.0015, {}, "1.5e-3"),
    (0.0015, {}, "1.5E-3"),
    (0.0015, {}, r"1.5 \times 10^{-3}"),
    (0.0015, {}, r"1.5\cdot10^{-3}"),
    (0.0015, {}, "1.5 x 10^-3"),
    (0.0015, {}, "1.5*10**(-3)"),
    (0.0015, {}, "1.5\N{MULTIPLICATION SIGN}10⁻³"),
    (0.001, {}, "10^{-3}"),
    (1e-05, {}, "0.00001"),
    ("0.25", {}, "25 %"),
    ("0.25", {}, r"25\%"),
    ("25 %", {}, "0.25"),
    (25, {"unit": "%"}, "25"),
    (25, {"unit": "%"}, "25 percent"),
    ("9.8 m/s^2", {}, "9.8 m/s²"),
    ("9.8 m/s^2", {}, "9.8m/s^2"),
    ("9.8 m/s^2", {}, r"9.8\,\text{m/s}^2"),
    ("9.8 m/s^2", {}, r"9.8 \frac{\text{m}}{\text{s}^2}"),
    ("9.8 m/s^2", {}, r"9.8\ \mathrm{m}\,\mathrm{s}^{-2}"),
    ("9.8 m/s^2", {}, "9.8 m s⁻²"),
    ("9.8 m/s^2", {}, "9.8 m·s^-2"),
    ("9.8 m/s^2", {}, "980 cm/s/s"),
    ("9.8 m/s^2", {}, "9.8 meters per second squared"),
    (9.8, {"unit": "m/s^2"}, "9.8"),
    (9.8, {"unit": "m/s^2"}, "9.8 N/kg"),
    ("1 km", {}, "1000 m"),
    ("1 km", {"unit": "m"}, "1000"),
    ("1 km", {}, "x = 1 km = 1000 m"),
    ("5e-6 m", {}, "5 µm"),
    ("5e-6 m", {}, "5 μm"),
    ("5e-6 m", {}, r"5\,\mu\text{m}"),
    ("0.47 MΩ", {}, r"470\,\text{k}\Omega"),
    ("2 kWh", {}, "7.2 MJ"),
    ("8.314 J/(mol K)", {}, "8.314 J/mol·K"),
    ("8.314 J/(mol K)", {}, r"8.314\ \mathrm{J\,mol^{-1}\,K^{-1}}"),
    ("4.18 J/(g K)", {}, "4.18 kJ/(kg °C)"),
    ("25 °C", {}, "298.15 K"),
    ("25 degC", {}, "77 °F"),
    (25, {"unit": "°C"}, "77 degrees Fahrenheit"),
    (298.15, {"unit": "K"}, r"25\,^\circ\text{C}"),
    ("25 °C", {}, "25 C"),
    ("10 N m", {}, "10 Nm"),
    ("3 A", {}, "3 amps"),
    ("1 AU", {"rel_tol": 0.01}, "149.6e6 km"),
    ("60 rpm", {}, "1 rev/s"),
    ("6.02e23 1/mol", {}, "6.02·10²³ mol⁻¹"),
    ("6.02e23 1/mol", {}, "6.02e23 /mol"),
    ("6.67e-11 N m^2/kg^2", {}, r"6.67\times10^{-11}\,\mathrm{N\cdot m^2/kg^2}"),
    ("0.1 mol/L", {}, "0.1 M"),
    ("1 atm", {"sig_figs": 3}, "760 mmHg"),
    ("90 deg", {}, r"90^{\circ}"),
    ("5 kg", {}, "5 Kg"),
    ("5 Hz", {}, "5 1/s"),
    ("5 m^3", {}, "5 cubic meters"),
    ("5 m^2", {}, "5 m2"),
    ("180 deg", {"abs_tol": 1e-9}, "3.14159265358979 rad"),
    ("36 km/h", {}, "10 m/s"),
    ("1 ft", {}, "12 inches"),
    (100, {"rel_tol": 0.01}, "101"),
    (100, {"rel_tol": 0.01}, "99"),
    (0.3, {"abs_tol": 0.1}, "0.2"),
    (2.875, {"abs_tol": 0.01}, "2.88"),
    ("2.875", {"sig_figs": 3}, "2.88"),
    ("2.875", {"sig_figs": 3}, "2.882"),
    ("9.995", {"sig_figs": 3}, "10.0"),
    ("1234 m", {"sig_figs": 2}, "1.2 km"),
    (2.88, {}, r"\text{pH} \approx 2.88"),
    (2.88, {}, "pH = 2.88"),
    ("0", {}, "-0.0"),
    ("20 °C", {"abs_tol": 1}, "294 K"),
]

WRONG: list[tuple[Any, dict[str, Any], str]] = [
    ("1/3", {}, "0.3333"),
    (5, {}, "6"),
    (5, {}, "-5"),
    (1234567, {}, "1,234,568"),
    (0.0015, {}, "1.5e-4"),
    (0.25, {}, "25"),
    (50, {}, "50%"),
    (25, {"unit": "%"}, "0.25"),
    ("9.8 m/s^2", {}, "9.8"),  # no unit
    ("9.8 m/s^2", {}, "9.8 m/s"),
    ("9.8 m/s^2", {}, "9.8 m"),
    (9.8, {"unit": "m/s^2"}, "9.8 kg"),
    (9.8, {"unit": "m/s^2"}, "9.8 cm/s^2"),
    (5, {}, "5 m"),
    ("5 kg", {}, "5 g"),
    ("5 mW", {}, "5 MW"),
    ("25 °C", {}, "25 K"),
    ("25 °C", {}, "25 °F"),
    ("10 K", {}, "10 °C"),
    ("1 km", {}, "1 km = 100 m"),
    ("5", {}, "3 = 5"),
    (100, {"rel_tol": 0.01}, "101.0000001"),
    (0.3, {"abs_tol": 0.1}, "0.19999999"),
    (0, {"rel_tol": 0.5}, "0.0001"),
    ("2.875", {"sig_figs": 3}, "2.87"),
    ("1e-7", {"sig_figs": 1}, "2e-7"),
    ("20 °C", {"abs_tol": 1}, "295 K"),
    ("1 km", {}, "1"),
    (1, {"sig_figs": 3}, "9" * 150),
    (1, {}, "1 Ym^9/m^9 Ym^9/m^9"),
    (1, {"rel_tol": 0.01}, "1e999"),
]

UNPARSED = [
    "",
    "5 or 6",
    "5, 6",
    "5 ± 1",
    "5-6",
    "<5",
    "five",
    "1,23",
    "1.2.3",
    "5 apples",
    "5 m/",
    "5 /m/",
    "5 m//s",
    "5 m**s",
    "5 (m",
    "5 m)",
    "5 (m)^2",
    "5 m^99",
    "5 m^s",
    "5^2",
    "2^2^2",
    "9**9**9",
    "10^10^10",
    "5 m**9**9**9",
    "5 m^(9^9)",
    "5 (((km)^9)^9)^9",
    "1e999999999",
    "1e99999999999999999999 m",
    "10^999999999",
    "nan",
    "NaN m",
    "inf",
    "-inf",
    "Infinity",
    "5 nan",
    "5 inf",
    "1/0",
    "0/0",
    "5\0m",
    "\0" * 100,
    "5 __import__",
    "__import__('os').system('true')",
    "5 m.__class__",
    "5 delta_degC",
    "5 dB",  # not proportional: no conversion is exact
    "5 m/dB",
    "37 dBm",
    "5 kg0 m",
    "5 m^0",
    "5 lambda: 0",
    "\N{ARABIC-INDIC DIGIT FIVE}",
    "\N{FULLWIDTH DIGIT FIVE}",
    "5i",
    "9" * 1_000_000,
    "5 " + "m" * 1_000_000,
    "5" + " " * 1_000_000 + "m^",
    "((" * 90,
    "5 " + "m*" * 90,
    "5 " + "a" * 190,
    "^" * 190,
    r"\frac{" * 30,
    r"\text{" * 30,
    " per" * 40,
    "square " * 25,
    "5 " + "kilo" * 12 + "m",
]


@pytest.mark.parametrize(("answer", "meta", "text"), RIGHT)
def test_right(answer: Any, meta: dict[str, Any], text: str) -> None:
    assert verdict(text, answer, **meta) == Score(1.0, True, "ok", detail=f"answered {text[:80].strip('$')!r}")


@pytest.mark.parametrize(("answer", "meta", "text"), WRONG)
def test_wrong(answer: Any, meta: dict[str, Any], text: str) -> None:
    score = verdict(text, answer, **meta)
    assert (score.value, score.correct, score.status) == (0.0, False, "wrong")


@pytest.mark.parametrize("text", UNPARSED, ids=lambda text: repr(text[:20]))
def test_what_is_no_quantity_is_never_right_and_decided_at_once(text: str) -> None:
    numeric("1", quantity(5))  # pint is loaded
    for answer, meta in ((5, {}), ("5 m", {"rel_tol": 0.1}), (1, {"unit": "m", "abs_tol": 10.0})):
        start = time.process_time()
        score = verdict(text, answer, **meta)
        assert (score.value, score.correct, score.status) == (0.0, False, "unparsed")
        assert time.process_time() - start < 0.3


@pytest.mark.parametrize(
    ("response", "correct"),
    [
        ("<think>6 m</think>The answer is 5 m.", True),
        ("<think>5 m</think>The answer is 6 m.", False),
        ("<think>5 m", False),
        (r"So \boxed{5\ \text{m}}.", True),
        (r"\boxed{500}\,\text{cm}", False),  # a bare number, and the problem asks for no unit
        ("**5 m**", True),
        ("It must be about 5 m, I think.", False),
    ],
)
def test_the_final_answer_counts(response: str, correct: bool) -> None:
    assert numeric(response, quantity("5 m")).correct is correct


@pytest.mark.parametrize(
    ("answer", "meta"),
    [
        ("about a dozen", {}),
        (None, {}),
        (float("nan"), {}),
        ([1, 2], {}),
        ("5 m", {"unit": "s"}),
        (5, {"unit": "apples"}),
        (5, {"unit": "m**9**9"}),
        (5, {"rel_tol": "1 %"}),
        (5, {"rel_tol": -0.1}),
        (5, {"abs_tol": float("inf")}),
        (5, {"abs_tol": True}),
        (5, {"sig_figs": 2.5}),
    ],
)
def test_a_row_that_makes_no_sense_is_bad_input(answer: Any, meta: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=r"no quantity|from 0 up"):
        verdict("5", answer, **meta)


NUMBERS = st.fractions(min_value=-(10**9), max_value=10**9, max_denominator=10**6)


@given(NUMBERS, st.integers(1, 9))
@example(Fraction(5, 2), 1)
@example(Fraction(999, 100), 2)
def test_rounding_is_to_the_nearest_with_that_many_figures(value: Fraction, figures: int) -> None:
    found = round_figures(value, figures)
    digits = format(float(found), f".{figures - 1}e")
    assert float(digits) == float(found)  # it has no more figures
    if value:
        exponent = next(e for e in range(20, -20, -1) if Fraction(10) ** e <= abs(value))
        assert abs(found - value) <= Fraction(10) ** (exponent - figures + 1) / 2
    assert round_figures(-value, figures) == -found
    assert round_figures(found, figures) == found


def test_halves_are_rounded_away_from_zero() -> None:
    # 2.5 -> 3, 9.95 -> 10 (2 figures: 10.), -0.125 -> -0.13
    assert round_figures(Fraction(5, 2), 1) == 3
    assert round_figures(Fraction(995, 100), 2) == 10
    assert round_figures(Fraction(-1, 8), 2) == Fraction(-13, 100)
    assert round_figures(Fraction(0), 3) == 0


@given(NUMBERS, st.sampled_from(["m", "km", "ft", "µm", "mile"]))
def test_a_length_is_equal_to_itself_in_every_unit(value: Fraction, unit: str) -> None:
    text = f"{value.numerator}/{value.denominator}"
    assert verdict(f"{text} {unit}", f"{text} {unit}").correct
    assert verdict(f"{text} km", f"{text} m").correct is (value == 0)


@pytest.mark.slow
def test_no_unit_that_pint_knows_breaks_the_verifier() -> None:
    for name in list(registry()._units):
        for form in ("5 {}", "5 {} kg", "5 kg/{}", "5 {}^-2"):
            assert verdict(form.format(name), "5 kg").status in ("ok", "wrong", "unparsed")


@given(st.text(max_size=60))
@example("5 \ud800")
def test_any_text_has_a_verdict(text: str) -> None:
    assert verdict(text, "7/13 kg").value == 0.0
