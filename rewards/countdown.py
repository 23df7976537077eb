"""Countdown: is this expression made of exactly these numbers, and does it reach the target? Nothing but numbers, + - *
/ and brackets reaches Python's parser, and its tree is walked over exact fractions, not run."""

import ast
import operator
import re
from collections import Counter
from fractions import Fraction

from rewards.answer import final_answer
from rewards.types import Problem, Score

MAX_LENGTH = 500
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_TOKEN = re.compile(r"\s*(?:(0|[1-9]\d{0,8})(?!\d)|([-+*/()])|(\S.{0,9}))", re.ASCII | re.DOTALL)


class NotAnExpression(ValueError):
    """The text does not follow the grammar; the message says where."""


def countdown(response: str, problem: Problem) -> Score:
    """Whether the final answer uses each of `numbers` exactly once and equals `target` (both in problem.meta).
    Any valid expression counts, not only the reference; `= target` may follow it. Raises KeyError for a problem
    without numbers and target."""
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
    for digits, sign, other in _TOKEN.findall(text):
        if other:
            raise NotAnExpression(f"{other!r} is no number, operator or bracket")
        tokens.append(int(digits) if digits else sign)
    return tokens


def evaluate(tokens: list[int | str]) -> Fraction:
    """The exact value of an infix expression; raises NotAnExpression, ZeroDivisionError."""
    try:
        return _value(ast.parse(" ".join(map(str, tokens)), mode="eval").body)  # apart, so that * * is no power
    except (SyntaxError, RecursionError) as error:
        raise NotAnExpression(f"no expression: {error.args[0]}") from None


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(int(number)):
            return Fraction(number)
        case ast.UnaryOp(ast.USub(), operand):
            return -_value(operand)
        case ast.BinOp(left, kind, right):
            return OPERATIONS[type(kind)](_value(left), _value(right))
    raise NotAnExpression(f"{ast.unparse(node)[:20]!r} out of place")
