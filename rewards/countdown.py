"""Countdown: is this expression made of exactly these numbers, and does it reach the target?

A tokeniser and a recursive-descent parser of our own over exact fractions; nothing is ever evaluated as code.
"""

import re
from collections import Counter
from fractions import Fraction

from rewards.answer import final_answer
from rewards.types import Problem, Score

MAX_LENGTH = 500
MAX_DEPTH = 30
_TOKEN = re.compile(r"\s*(?:(0|[1-9]\d{0,8})(?!\d)|([-+*/()])|(\S.{0,9}))", re.ASCII | re.DOTALL)


class NotAnExpression(ValueError):
    """The text does not follow the grammar; the message says where."""


def countdown(response: str, problem: Problem) -> Score:
    """Whether the final answer uses each of `numbers` exactly once and equals `target` (both in problem.meta).

    Any valid expression counts, not only the reference; `= target` may follow it. Raises KeyError for a problem
    without numbers and target.
    """
    numbers, target = problem.meta["numbers"], problem.meta["target"]
    answer = final_answer(response)
    if answer is None:
        return Score(0.0, False, "unparsed", detail="no final answer")
    expression, equals, right = answer.partition("=")
    if equals and right.strip() != str(target):
        return Score(0.0, False, "wrong", detail=f"states {right.strip()[:20]!r}, not {target}")
    try:
        tokens = tokenise(expression)
        value = evaluate(tokens)
    except NotAnExpression as error:
        return Score(0.0, False, "unparsed", detail=str(error))
    except ZeroDivisionError:
        return Score(0.0, False, "wrong", detail="divides by zero")
    used = Counter(token for token in tokens if isinstance(token, int))
    if used != Counter(numbers):
        return Score(0.0, False, "wrong", detail=f"uses {sorted(used.elements())}, not {sorted(numbers)}")
    if value != target:
        return Score(0.0, False, "wrong", detail=f"equals {value}, not {target}")
    return Score(1.0, True, "ok")


def tokenise(text: str) -> list[int | str]:
    """Integers in ASCII digits and the operators + - * / ( ); raises NotAnExpression."""
    text = text.strip()
    if len(text) > MAX_LENGTH:
        raise NotAnExpression(f"longer than {MAX_LENGTH} characters")
    tokens: list[int | str] = []
    for digits, operator, other in _TOKEN.findall(text):
        if other:
            raise NotAnExpression(f"{other!r} is no number, operator or bracket")
        tokens.append(int(digits) if digits else operator)
    return tokens


def evaluate(tokens: list[int | str]) -> Fraction:
    """The exact value of an infix expression; raises NotAnExpression, ZeroDivisionError."""
    rest = tokens[::-1]  # the next token is the last: each rule takes what it reads off the end
    value = _sum(rest, 0)
    if rest:
        raise NotAnExpression(f"{rest[-1]!r} stands where the expression could end")
    return value


def _sum(rest: list[int | str], depth: int) -> Fraction:
    value = _product(rest, depth)
    while rest and rest[-1] in ("+", "-"):
        sign = 1 if rest.pop() == "+" else -1
        value += sign * _product(rest, depth)
    return value


def _product(rest: list[int | str], depth: int) -> Fraction:
    value = _factor(rest, depth)
    while rest and rest[-1] in ("*", "/"):
        if rest.pop() == "*":
            value *= _factor(rest, depth)
        else:
            value /= _factor(rest, depth)
    return value


def _factor(rest: list[int | str], depth: int) -> Fraction:
    if depth > MAX_DEPTH:
        raise NotAnExpression(f"nested deeper than {MAX_DEPTH}")
    if not rest:
        raise NotAnExpression("the expression is empty or ends too soon")
    token = rest.pop()
    if isinstance(token, int):
        return Fraction(token)
    if token == "-":
        return -_factor(rest, depth + 1)
    if token != "(":
        raise NotAnExpression(f"{token!r} out of place")
    value = _sum(rest, depth + 1)
    if not rest or rest.pop() != ")":
        raise NotAnExpression("a bracket is not closed")
    return value
