"""Chemistry with numbers: masses, and the pH from the full equilibrium, water's own ions included."""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from rewards import table
from rewards.tasks.base import Generator
from rewards.types import Problem

KW = 1e-14  # at 25 °C
DATA = table("chemistry")
MASSES = {name: Fraction(mass) for name, mass in DATA["masses"].items()}  # g/mol
REACTIONS = DATA["reactions"]
KINDS: dict[str, float] = DATA["kinds"]  # and their difficulty


@dataclass(frozen=True)
class Chemistry(Generator):
    """The pH of acids, bases, buffers and diprotic acids, and limiting masses (difficulty by kind, 1 to 4)."""

    base = "chemistry"
    reward = "numeric"
    kind: str = field(default="all", metadata={"help": "which problems", "choices": ("all", *KINDS)})

    def draw(self, rng: random.Random) -> Problem:
        kind = rng.choice(list(KINDS)) if self.kind == "all" else self.kind
        text, answer, meta = _mass(rng) if kind == "stoichiometry" else _ph(kind, rng)
        return Problem("", self.base, text, answer, text.partition(". ")[0], KINDS[kind], kind, meta=meta)


def ph(ions: float, concentration: float = 0.0, top: int = 0, constants: Sequence[float] = ()) -> float:
    """The pH at which the charges balance, by bisection; amounts in mol/L.
    ions: charge of those that take no part (Na+ +1, Cl- -1). Of the solute: how much in all its forms, the charge of
    the most protonated one and the constants Ka of its protons, one after the other."""

    from scipy.optimize import bisect

    def charge(h: float) -> float:  # rises with [H+]
        forms = [math.prod(k / h for k in constants[:n]) for n in range(len(constants) + 1)]
        lost = sum(n * form for n, form in enumerate(forms)) / sum(forms)
        return ions + h - KW / h + concentration * (top - lost)

    return float(bisect(lambda value: charge(10**-value), -2.0, 16.0))


def _ph(kind: str, rng: random.Random) -> tuple[str, str, dict[str, float | str]]:
    most = {"strong": 8, "buffer": 2}.get(kind, 4)
    amount, salt = (f"{rng.randint(10, 99) / 10}e-{rng.randint(1, most)}" for _ in "ab")
    c = float(amount)
    if kind == "strong":
        name = rng.choice(DATA["strong"])
        what, value = f"the strong electrolyte {name}", ph(c if "OH" in name else -c)
    elif kind == "diprotic":
        name, (first, second) = rng.choice(list(DATA["diprotic"].items()))
        what, value = f"{name} (Ka1 = {first}, Ka2 = {second})", ph(0.0, c, 0, [float(first), float(second)])
    else:
        acid = rng.random() < 0.5
        name, constant = rng.choice(list(DATA["ka" if acid else "kb"].items()))
        added, ka = float(salt) * (kind == "buffer"), float(constant) if acid else KW / float(constant)
        value = ph(added if acid else -added, c + added, 0 if acid else 1, [ka])
        what = f"the weak {'acid' if acid else 'base'} {name} ({'Ka' if acid else 'Kb'} = {constant})"
        what += f" and {salt} mol/L of its {'Na' if acid else 'Cl'} salt" if added else ""
    return table("prompts")["ph"].format(amount, what), f"{value:.3f}", {"abs_tol": 0.01}


def sides(equation: str) -> list[dict[str, int]]:
    """[{formula: coefficient}] of the reactants and of the products."""
    terms = [re.findall(r"(?:(\d+) )?([A-Z]\w*)", side) for side in equation.split("->")]
    return [{formula: int(count or 1) for count, formula in side} for side in terms]


def molar_mass(formula: str) -> Fraction:
    """In g/mol, from the atoms of a formula without brackets."""
    atoms = re.findall(r"([A-Z][a-z]?)(\d*)", formula)
    return sum((MASSES[atom] * int(count or 1) for atom, count in atoms), Fraction(0))


def product_mass(equation: str, grams: dict[str, Fraction], product: str) -> Fraction:
    """Grams of a product when the reactant that limits is used up."""
    reactants, products = sides(equation)
    extent = min(mass / molar_mass(name) / reactants[name] for name, mass in grams.items())
    return extent * products[product] * molar_mass(product)


def _mass(rng: random.Random) -> tuple[str, str, dict[str, float | str]]:
    equation = rng.choice(REACTIONS)
    reactants, products = sides(equation)
    grams = {name: Fraction(rng.randint(10, 999), 10) for name in reactants}
    product = rng.choice(list(products))
    given = " and ".join(f"{float(amount):.1f} g of {name}" for name, amount in grams.items())
    masses = ", ".join(f"{name} {float(molar_mass(name)):g}" for name in reactants | products)
    text = table("prompts")["mass"].format(product=product, given=given, equation=equation, masses=masses)
    return text, f"{float(product_mass(equation, grams, product)):.6g}", {"rel_tol": 0.005, "unit": "g"}
