from __future__ import annotations

import re
from fractions import Fraction

import mpmath
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.numeric import numeric
from rewards.registry import judge, load_reward
from rewards.tasks import load_task
from rewards.tasks.base import SPLITS, split_of
from rewards.tasks.chemistry import KINDS, REACTIONS, molar_mass, ph, product_mass, sides

KW = 1e-14


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (ph(-0.1), 1.00),  # HCl: -log10 0.1
        (ph(-1e-8), 6.978),  # HCl so thin that water's own ions count: h = (c + sqrt(c^2 + 4 Kw)) / 2 = 1.0512e-7
        (ph(0.0), 7.00),
        (ph(0.01), 12.00),  # NaOH
        (ph(0.0, 0.1, 0, [1.8e-5]), 2.875),  # acetic acid: h = (-Ka + sqrt(Ka^2 + 4 Ka c)) / 2 = 1.3327e-3
        (ph(0.0, 0.1, 1, [KW / 1.8e-5]), 11.125),  # ammonia: the same number, as pOH
        (ph(0.1, 0.2, 0, [1.8e-5]), 4.745),  # 0.1 acid, 0.1 salt: pKa = 4.7447
        (ph(0.2, 0.3, 0, [1.8e-5]), 5.046),  # Henderson-Hasselbalch: 4.7447 + log10 2
        (ph(-0.1, 0.2, 1, [KW / 1.8e-5]), 9.255),  # ammonia and ammonium chloride: 14 - 4.7447
        (ph(0.0, 0.04, 0, [4.3e-7, 4.8e-11]), 3.882),  # carbonic acid: the first step alone gives 1.3093e-4
        (ph(0.1, 0.1, 0, [4.3e-7, 4.8e-11]), 8.343),  # NaHCO3: (pKa1 + pKa2) / 2 = 8.343
        (ph(0.2, 0.1, 0, [4.3e-7, 4.8e-11]), 11.65),  # Na2CO3: Kb = 2.083e-4, [OH-] = 4.462e-3
        (ph(0.0, 0.1, 0, [1e3]), 1.00),  # an acid that is as good as strong
    ],
)
def test_ph_by_hand(found: float, expected: float) -> None:
    assert found == pytest.approx(expected, abs=0.002)


def by_polynomial(ions: float, c: float, top: int, constants: list[float]) -> float:
    """The pH as the only positive root of the balance, cleared of its denominators, to 60 digits.

    (ions + c top + h - Kw/h) sum_n h^(N-n) K1..Kn = c sum_n n h^(N-n) K1..Kn, times h.
    """
    mpmath.mp.dps = 60
    forms = [mpmath.fprod(constants[:n]) for n in range(len(constants) + 1)]  # of h^N, h^(N-1), …, 1
    size = len(forms)
    poly = [mpmath.mpf(0)] * (size + 2)
    for n, form in enumerate(forms):
        poly[n] += form
        poly[n + 1] += form * (mpmath.mpf(ions) + mpmath.mpf(c) * (top - n))
        poly[n + 2] -= form * mpmath.mpf(KW)
    roots = mpmath.polyroots(poly, maxsteps=500, extraprec=500)
    (root,) = [r.real for r in map(mpmath.mpc, roots) if abs(r.imag) < mpmath.mpf(10) ** -40 * abs(r) and r.real > 0]
    return float(-mpmath.log10(root))


KA = st.floats(-12, -1).map(lambda power: 10**power)
AMOUNT = st.floats(-6, 0).map(lambda power: 10**power)


@settings(max_examples=40, deadline=None)
@given(AMOUNT, st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 1), st.lists(KA, min_size=1, max_size=2))
def test_ph_is_the_root_of_the_polynomial(c: float, salt: float, top: int, constants: list[float]) -> None:
    ions = c * salt * (1 - 2 * top)
    assert ph(ions, c, top, constants) == pytest.approx(by_polynomial(ions, c, top, constants), abs=1e-6)


def test_masses_by_hand() -> None:
    assert molar_mass("H2O") == Fraction("18.015")  # 2 x 1.008 + 15.999
    assert molar_mass("Al2O3") == Fraction("101.961")  # 2 x 26.982 + 3 x 15.999
    # 4.032 g H2 are 2 mol, 31.998 g O2 are 1 mol: exactly 2 mol of water
    water = "2 H2 + O2 -> 2 H2O"
    assert product_mass(water, {"H2": Fraction("4.032"), "O2": Fraction("31.998")}, "H2O") == Fraction("36.03")
    # ten times the oxygen changes nothing, half the hydrogen halves it
    assert product_mass(water, {"H2": Fraction("2.016"), "O2": Fraction("319.98")}, "H2O") == Fraction("18.015")
    # 28.014 g N2 (1 mol) and 3.024 g H2 (1.5 mol): hydrogen limits, 1 mol of ammonia, 17.031 g
    grams = {"N2": Fraction("28.014"), "H2": Fraction("3.024")}
    assert product_mass("N2 + 3 H2 -> 2 NH3", grams, "NH3") == Fraction("17.031")


@pytest.mark.parametrize("equation", REACTIONS)
def test_every_equation_is_balanced(equation: str) -> None:
    reactants, products = sides(equation)
    atoms = [
        sorted(
            (atom, sum(n * int(k or 1) for f, n in side.items() for a, k in parse(f) if a == atom))
            for atom in {a for formula in side for a, _ in parse(formula)}
        )
        for side in (reactants, products)
    ]
    assert atoms[0] == atoms[1]
    assert len(reactants) == 2
    mass = [sum(n * molar_mass(f) for f, n in side.items()) for side in (reactants, products)]
    assert mass[0] == mass[1]


def parse(formula: str) -> list[tuple[str, str]]:
    return re.findall(r"([A-Z][a-z]?)(\d*)", formula)


@pytest.mark.parametrize("kind", KINDS)
def test_the_task_is_one(kind: str) -> None:
    task = load_task(f"chemistry?kind={kind}")
    reward = load_reward(task.reward)
    for split in SPLITS:
        for index in range(8):
            problem = task.problem(index, split)
            assert split_of("chemistry", problem.key) == split
            assert (problem.subtask, problem.difficulty) == (kind, KINDS[kind])
            assert judge(reward, task.gold(problem), problem).correct
            assert judge(reward, "<think>hm</think>" + task.gold(problem), problem).correct
            near = float(problem.answer) * 1.02 + (0 if kind == "stoichiometry" else 0.05)
            for wrong in (f"{near:.4f}", f"-{problem.answer}", f"{problem.answer} mol", "7 or 8", ""):
                assert not judge(reward, f"<answer>{wrong}</answer>", problem).correct


def test_a_rounded_answer_and_another_unit_are_right() -> None:
    ph_problem = load_task("chemistry?kind=weak").problem(0, "train")
    assert numeric(f"pH = {float(ph_problem.answer):.2f}", ph_problem).correct
    mass = load_task("chemistry?kind=stoichiometry").problem(0, "train")
    grams = float(mass.answer)
    for text in (f"{grams:.3g}", f"{grams:.4g} g", f"{grams / 1000:.4g} kg", f"{grams * 1000:.3e} mg"):
        assert numeric(f"<answer>{text}</answer>", mass).correct, text


def test_the_prompt_says_all_that_the_answer_takes() -> None:
    """An independent reading of the prompt gives the answer."""
    for index in range(10):
        problem = load_task("chemistry?kind=weak").problem(index, "train")
        found = re.search(r"holds (\S+) mol/L of the weak (acid|base) \S+ \(K[ab] = (\S+)\)", str(problem.prompt))
        assert found
        c, constant, acid = float(found[1]), float(found[3]), found[2] == "acid"
        h = by_polynomial(0.0, c, 0 if acid else 1, [constant if acid else KW / constant])
        assert float(problem.answer) == pytest.approx(h, abs=0.0006)
        problem = load_task("chemistry?kind=diprotic").problem(index, "train")
        found = re.search(r"holds (\S+) mol/L of \S+ \(Ka1 = (\S+), Ka2 = (\S+)\)", str(problem.prompt))
        assert found
        slow = by_polynomial(0.0, float(found[1]), 0, [float(found[2]), float(found[3])])
        assert float(problem.answer) == pytest.approx(slow, abs=0.0006)
