"""reasoning-gym's puzzles: is the answer fully right? puzzles.yaml has a line for each data set.
The library's own scorers are called only behind a strict pattern, and never where they execute the answer or can be
gamed; such data sets, and all that compare texts or numbers, are judged here."""

import functools
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from itertools import repeat
from typing import Any, NamedTuple

from rewards import table
from rewards.answer import after_thinking, as_text, final_answer, number, with_open_tag
from rewards.countdown import countdown
from rewards.errors import BadInput, nearest, one_line
from rewards.latex import Node, NotRead, TooBig, clean, read
from rewards.types import Problem, Score
from rewards.value import context, evaluate, same_value

OFF = "gym: tasks are off: reasoning-gym is not installed; try make setup, or pip install 'ponder-rl[gym]'"
ROUNDING = 1e-9
SPANS = {0.3: 3, 3.0: 4, 20.0: 16}  # points in each of so many parts of -span..span: an integrand may be real in few
_SPELLINGS = ((r"\ba(sin|cos|tan)\b", r"arc\1"), (r"\blog\b", "ln"), (r"\bE\b", "e"))
_ROLE = re.compile(r"\b([a-z]+) is an? ([a-z]+)\b")


@dataclass(frozen=True)
class Rule:
    """How a data set's answers are judged: a line of puzzles.yaml."""

    check: str = "text"  # a name in CHECKS
    fold: bool = False  # upper and lower case are the same
    like: str = ""  # a pattern that the whole answer must match
    most: int = 5_000  # characters of an answer
    within: tuple[float, float] = (0.0, 0.0)  # what a number may be off by, both absolute and relative
    among: str = ""  # a list in the metadata: each entry is right too
    besides: str = ""  # a list in the metadata: no entry is right
    least: float = 1.0  # the library's score from which an answer is right
    partial: bool = True  # whether the library's scorer is harmless, so that partial credit can be asked for
    reference: str = "answer"  # the field with the reference answer; "" where there is none


class Case(NamedTuple):
    """An answer and what it is judged by."""

    answer: str
    gold: str
    problem: Problem
    rule: Rule
    metadata: dict[str, Any]  # the library's


@dataclass(frozen=True)
class Puzzle:
    """Whether the final answer solves a `gym:` problem: the reward `gym`. Raises BadInput for any other problem.
    partial: give partial credit, by the library's scorer where that is harmless. dataset: one whose scorer is made
    ready while the reward loads, off every item's clock."""

    partial: bool = False
    dataset: str = ""

    def __post_init__(self) -> None:
        if self.dataset and (self.partial or rules()[self.dataset].check == "library"):
            make_dataset(self.dataset, "{}")

    def __call__(self, response: str, problem: Problem) -> Score:
        if (rule := rules().get(problem.meta.get("dataset", ""))) is None:
            raise BadInput(
                f"problem {problem.id!r} names no data set of reasoning-gym; the reward gym is for gym: tasks"
            )
        gold = as_text(problem.answer)
        answer = read_answer(response, problem, lines="\n" in gold)
        if not answer or len(answer) > rule.most:
            return Score(0.0, False, "unparsed", detail="too long an answer" if answer else "no final answer")
        case = Case(answer, gold, problem, rule, problem.meta["metadata"])
        fits = not rule.like or re.fullmatch(rule.like, answer) is not None
        if fits and CHECKS[rule.check](case):
            return Score(1.0, True, "ok")
        value = min(_library_score(case), 1 - ROUNDING) if fits and self.partial and rule.partial else 0.0
        return Score(max(0.0, value), False, "wrong", detail=f"answered {answer[:80]!r}")


@functools.cache
def rules() -> dict[str, Rule]:
    return {name: Rule(**line) for name, line in table("puzzles").items()}


def read_answer(response: str, problem: Problem, lines: bool = True) -> str | None:
    """What <answer> tags hold, without a code fence; else the final answer, or the whole answer part where it may have
    several `lines`. None where there is none, or a hedge between different tagged ones."""
    response = with_open_tag(response, problem.prompt)
    text = after_thinking(response)
    if text is None:
        return None
    pieces = [piece.rpartition("<answer>") for piece in text.split("</answer>")[:-1]]
    found = {content.strip() for _, tag, content in pieces if tag}
    if len(found) > 1:
        return None
    answer = found.pop() if found else text.strip() if lines and "\\boxed" not in text else final_answer(response)
    fenced = re.fullmatch(r"```\w*\n(.*)\n```", answer or "", re.DOTALL)
    return fenced[1].strip() if fenced else answer


def _text(case: Case) -> bool:
    """The same words line by line: blanks don't matter, and a number may be written in another way."""
    golds = map(_lines, [case.gold, *case.metadata.get(case.rule.among, ())])
    return any(_same(_lines(case.answer), gold, case.rule) for gold in golds)


def _lines(text: str) -> list[list[str]]:
    lines = [" ".join(line.split()).replace(" ,", ",").replace(", ", ",") for line in text.splitlines()]
    return [line.split() for line in "\n".join(lines).strip().removesuffix(".").splitlines() if line]


def _same(answer: Any, gold: Any, rule: Rule) -> bool:
    """Equal lists and words, numbers as the rule allows."""
    if isinstance(gold, list):
        return isinstance(answer, list) and len(answer) == len(gold) and all(map(_same, answer, gold, repeat(rule)))
    if isinstance(gold, dict):
        fits = isinstance(answer, dict) and answer.keys() == gold.keys()
        return fits and all(_same(answer[key], gold[key], rule) for key in gold)
    answer, gold = str(answer), str(gold)
    left, right = number(answer), number(gold)
    if left is None or right is None:
        return answer == gold or (rule.fold and answer.casefold() == gold.casefold())
    return abs(left - right) <= min(rule.within[0], rule.within[1] * abs(right))


def _number(case: Case) -> bool:
    """The number alone, with a currency sign or percent, or with a unit of at most three words behind it."""
    head, *unit = case.answer.removesuffix(".").split()
    bare = head.lstrip("$€£").removesuffix("%")
    return _text(case) or (len(unit) <= 3 and all(map(str.isalpha, unit)) and _same(bare, case.gold, case.rule))


def _json(case: Case) -> bool:
    """The same JSON value, in quotes of either kind; a number in it may stand in quotes or not."""
    try:
        mine, gold = (json.loads(text.replace("'", '"')) for text in (case.answer, case.gold))
    except ValueError:
        return _text(case)
    return _same(mine, gold, case.rule)


def _roles(case: Case) -> bool:
    """Who is what, in any order, and nothing besides."""
    mine, gold = (sorted(_ROLE.findall(text.lower())) for text in (case.answer, case.gold))
    return mine == gold and not set(re.findall(r"\w+", _ROLE.sub("", case.answer.lower()))) - {"and"}


def _survo(case: Case) -> bool:
    """Any filling with the given numbers whose rows and columns add up to the last of each."""
    grid, given = [list(map(number, line)) for line in _lines(case.answer)], case.metadata["puzzle"]
    if [len(row) for row in grid] != [len(row) for row in given] or any(None in row for row in grid):
        return False
    pairs = [pair for row, line in zip(grid, given, strict=True) for pair in zip(row, line, strict=True)]
    filled = Counter(mine for mine, cell in pairs if not cell) == Counter(case.metadata["candidate_numbers"])
    sums = all(sum(line[:-1]) == line[-1] for line in [*grid, *zip(*grid, strict=True)])
    return filled and sums and all(mine == cell for mine, cell in pairs if cell)


def integrates(answer: str, integrand: str, variable: str) -> bool:
    """Whether the derivative of `answer`, in which a constant C may stand, is the integrand wherever that is real."""
    mp, rng, agreed = context(40), random.Random(answer), 0  # nobody knows the points before the answer is written
    try:
        mine, given = tree(answer), tree(integrand)
    except (NotRead, TooBig):
        return False
    for point in (mp.mpf(span * (2 * rng.uniform(k, k + 1) / n - 1)) for span, n in SPANS.items() for k in range(n)):
        try:
            if mp.im(wanted := mp.convert(evaluate(given, 0, mp, {variable: point}))):
                continue
            gap = wanted - mp.diff(lambda x: mp.convert(evaluate(mine, 0, mp, {variable: x})), point)
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


def _library_score(case: Case) -> float:
    meta, problem = case.problem.meta, case.problem
    dataset = make_dataset(meta["dataset"], json.dumps(meta.get("config", {})))
    entry = {"question": problem.prompt, "answer": problem.answer, "metadata": case.metadata}
    try:
        return float(dataset.score_answer(case.answer, entry))
    except (MemoryError, RecursionError):
        raise
    except Exception:  # what an odd answer makes them raise
        return 0.0


@functools.cache
def make_dataset(name: str, config: str) -> Any:
    """A data set of the library; the configuration is JSON. Raises BadInput where it is refused or not installed."""
    if not installed():
        raise BadInput(OFF)
    from reasoning_gym.factory import DATASETS, create_dataset

    given = json.loads(config)
    known = [f.name for f in fields(DATASETS[name][1]) if f.name not in ("seed", "size")]
    for parameter in set(given) - set(known):
        raise BadInput(f"task 'gym:{name}': unknown parameter {parameter!r}; {nearest(parameter, known)}")
    try:
        return create_dataset(name, seed=0, **given)
    except Exception as error:  # a failed assertion, mostly
        raise BadInput(one_line(f"task 'gym:{name}' refuses {config}: {error}")) from None


def installed() -> bool:
    """Whether reasoning-gym is there; it is not loaded."""
    return find_spec("reasoning_gym") is not None


CHECKS: dict[str, Callable[[Case], bool]] = {
    "text": _text,
    "number": _number,
    "json": _json,
    "integer": lambda case: int(case.answer, 0) == int(case.gold, 0),  # 0xff is 255
    "factors": lambda case: sorted(re.findall(r"\d+", case.answer)) == sorted(re.findall(r"\d+", case.gold)),
    "expression": lambda case: (
        countdown(  # any of exactly these numbers with this value
            f"<answer>{case.answer}</answer>", replace(case.problem, meta={"target": 24} | case.metadata)
        ).correct
    ),
    "integral": lambda case: integrates(case.answer, case.metadata["integrand"], case.metadata["variable"]),
    "polynomial": lambda case: same_polynomial(case.answer, case.gold),
    "roles": _roles,
    "survo": _survo,
    "library": lambda case: (
        _library_score(case) >= case.rule.least - ROUNDING
        and _lines(case.answer) not in map(_lines, case.metadata.get(case.rule.besides, ()))
    ),
}
