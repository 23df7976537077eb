r"""Mathematics in LaTeX or plain text as a small tree of tuples. Our own grammar: bounded, and it runs nothing.
Leaves: ("n", value, decimals), ("s", name), ("pi",), ("e",), ("i",), ("inf",). Expressions: (operation, *arguments),
relations and "union" among them. Structures: ("list" | "set" | "()" | "[)" | …, *items), ("matrix", *rows)."""

import re
from fractions import Fraction
from typing import Any
from unicodedata import normalize

from rewards import table
from rewards.answer import boxed

MAX_LENGTH = 1000
Node = tuple[Any, ...]

_TABLE = table("latex")
FUNCTIONS, GREEK = _TABLE["functions"].split(), _TABLE["greek"].split()
CONSTANTS: dict[str, str] = _TABLE["constants"]
NAMES = {*FUNCTIONS, *GREEK, *CONSTANTS}
_LEVELS: list[dict[str, str]] = _TABLE["levels"]
_GROUPS: dict[str, list[str]] = _TABLE["groups"]
RELATIONS = {*_LEVELS[0].values()} - {"in"}
_PLUS_MINUS = ({"\\pm": "+", "\\mp": "-"}, {"\\pm": "-", "\\mp": "+"})
_CHARACTERS = str.maketrans(_TABLE["characters"])
_REWRITES = [(re.compile(old.replace("UNIT", _TABLE["unit"])), new) for old, new in _TABLE["rewrites"]]
_CYCLE = re.compile(r"(?<![\d.])(\d+)\.(\d*)\\(?:overline|bar)\s*\{(\d+)\}")  # 0.1\overline{6}
_SPACED = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d.]| \d|/)")  # 10 000
_THOUSANDS = re.compile(r"(?<![\d.,(\[{])\d{1,3}(?:,\d{3})+(?![\d)\]}]|,\d)")
_TOKEN = re.compile(
    r"(\s*)(?:(\d+\.?\d*(?:[eE][+-]?\d{1,3}(?!\d))?|\.\d+)|\\text\{([^{}]*)\}|([^\W\d_]+)|(\\(?:[A-Za-z]+|.)|\*\*|[<>!]=|\S))",
)
_FRACTION = re.compile(r"\\frac\b|\d+ / \d+$")
_LETTERS = re.compile("|".join([*FUNCTIONS, "pi", "."]))


class NotRead(ValueError):
    """A text that this grammar does not know."""


class TooBig(ValueError):
    """A text or a number beyond what is ever compared."""


def clean(text: str) -> str:
    """One spelling for what looks alike: Unicode signs, spacing, boxes, units, degrees, fractions. Raises TooBig."""
    if len(text) > MAX_LENGTH or not "".join(text.split()).isprintable():
        raise TooBig
    text = ", ".join(boxed(text)) or text
    if not text.isascii():
        text = re.sub("([₀-₉]+)", r"_{\1}", re.sub("([⁰¹²³⁴-⁹⁺⁻ⁿ]+)", r"^{\1}", text))
        text = normalize("NFKC", text.translate(_CHARACTERS))
    if "\\\\" in text and "\\begin" not in text:  # escaped twice
        text = re.sub(r"\\\\(?=[a-zA-Z])", r"\\", text)
    for pattern, new in _REWRITES:
        text = pattern.sub(new, text)
    for match in reversed(list(_CYCLE.finditer(text))):
        whole, start, cycle = match.groups()
        top, bottom = int(whole + start + cycle) - int(whole + start), (10 ** len(cycle) - 1) * 10 ** len(start)
        text = f"{text[: match.start()]}\\frac{{{top}}}{{{bottom}}}{text[match.end() :]}"
    text = _SPACED.sub(lambda m: m[0].replace(" ", ""), text)
    return " ".join(text.split()).rstrip(".,; ")


def read(text: str, thousands: bool = True) -> tuple[Node, str]:
    """The tree of a cleaned text, and the unit behind it. With `thousands` 1,234 is one number. Raises NotRead."""
    tokens = _tokens(_THOUSANDS.sub(lambda m: m[0].replace(",", ""), text) if thousands else text)
    nodes: list[Node] = []
    for signs in ({},) if {"\\pm", "\\mp"}.isdisjoint(tokens) else _PLUS_MINUS:
        parser = _Parser([signs.get(token, token) for token in tokens])
        items = parser.items("")
        rest = parser.tokens[parser.at : -1]
        if rest and not (rest[0][0] == '"' and all(token[0] in '"/^{}.0123456789' for token in rest)):
            raise NotRead(f"left over: {rest[:3]}")
        nodes.append(items[0] if len(items) == 1 else ("list", *items))
    both = [item for node in nodes for item in (node[1:] if node[0] in ("list", "set") else (node,))]
    unit = "".join(token.strip('"{}.') for token in rest).lower()
    return (nodes[0] if len(nodes) == 1 else ("list", *dict.fromkeys(both))), unit


def _tokens(text: str) -> list[str]:
    r"""Numbers, commands (`\sin`), letters, signs; a word or a unit as `"word`."""
    tokens: list[str] = []
    for space, number, words, letters, sign in _TOKEN.findall(text):
        words, last = words.strip(), tokens[-1] if tokens else "+"
        if words in ("and", "or") or letters in ("and", "or") or sign == ";":
            tokens.append(",")
        elif words:
            word = (last[-1] in "0123456789)}" and words not in ("e", "i")) or (words.isalpha() and words[1:])
            tokens += ['"' + words] if word and words not in NAMES else _tokens(words)
        elif letters in NAMES:
            tokens.append("\\" + letters)
        elif letters:
            wordy = letters[2:] and set("aeiouAEIOU") & set(letters) and not letters.startswith(tuple(FUNCTIONS))
            pieces = ["\\" + piece if piece[1:] else piece for piece in _LETTERS.findall(letters)]
            tokens += ['"' + letters] if wordy and (space or not last[0].isdigit()) else pieces
        elif number or sign:
            tokens.append(number or sign)
    return tokens


class _Parser:
    """Recursive descent over the tokens. Too deep a nesting ends as RecursionError."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at = [*tokens, ""], 0

    @property
    def next(self) -> str:
        return self.tokens[self.at]

    def take(self, *expected: str) -> str:
        token = self.next
        if not token or (expected and token not in expected):
            raise NotRead(f"{token!r} at {self.at}")
        self.at += 1
        return token

    def items(self, *ends: str) -> list[Node]:
        found = []
        while self.next not in ends and self.next[:1] != '"':
            found.append(self.binary(0))
            while self.next == ",":
                self.take()
                if self.next[:1] == '"':
                    raise NotRead("a word in a list")
        if not found:
            raise NotRead("nothing there")
        return found

    def binary(self, level: int) -> Node:  # from left to right; at the tightest level also with no sign between them
        signs, operand = _LEVELS[level], self.factor if level == 3 else lambda: self.binary(level + 1)
        node = operand()
        while True:
            before, ahead = self.tokens[self.at - 1], " ".join(self.tokens[self.at : self.at + 3])
            if self.next in signs:
                sign = signs[self.take()]
                node = (*(node if sign == node[0] == "union" else (sign, node)), operand())
            elif level == 3 and node[0] == "n" and before[0].isdigit() and _FRACTION.match(ahead):  # a mixed number
                fraction = self.primary()
                if fraction[0] == "n":
                    fraction = ("/", fraction, self.take("/") and self.primary())
                node = ("-" if node[1] < 0 else "+", node, fraction)
                node = ("%", node) if self.next == "%" and self.take() else node
            elif level == 3 and self._factor_follows(before):
                node = ("*", node, self.factor())
            else:
                return node

    def _factor_follows(self, before: str, in_function: bool = False) -> bool:
        token = self.next
        if token[:1].isdigit():
            return not before[0].isdigit()
        if token[:1].isalpha() or token[1:] in GREEK or token[1:] in CONSTANTS or token == "\\frac":
            return True
        return not in_function and ((token in _GROUPS and token != "|") or token[1:] in NAMES or token == "\\binom")

    def factor(self, script: bool = False) -> Node:  # a script takes signs and further scripts, but no ! behind it
        if self.next in ("+", "-"):
            sign, node = self.take(), self.factor(script)
            return node if sign == "+" else ("n", -node[1], node[2]) if node[0] == "n" else ("neg", node)
        node = self.primary()
        while self.next in ("^", "**") or (self.next in ("!", "%", "°") and not script):
            sign = self.take()
            node = ("^", node, self.factor(script=True)) if sign in ("^", "**") else (sign, node)
        return node

    def primary(self) -> Node:
        token = self.take()
        name = token.lstrip("\\")
        if ends := _GROUPS.get(token):
            items, bracket = self.items(*ends), token + self.take(*ends)
            if token == "\\{" or len(items) > 1:
                return ({"\\{": "set", "{": "list"}.get(token, bracket), *items)
            around = {"|": "abs", "\\lfloor": "floor", "\\lceil": "ceil"}.get(token)
            return (around, items[0]) if around else items[0]
        if name in CONSTANTS or token in ("e", "i"):
            return (CONSTANTS.get(name, name),)
        if token[0].isdigit() or (token[0] == "." and token != "."):
            if self.next == "_" and self.take():  # in a base: a name of its own
                return ("s", f"{token}_{self.argument()}")
            return ("n", Fraction(token), len(token.partition(".")[2]))
        if name in GREEK or token.isalpha():
            return ("s", f"{name}_{self.argument()}") if self.next == "_" and self.take() else ("s", name)
        if name in ("frac", "binom"):
            return ("/" if name == "frac" else name, self.argument(), self.argument())
        if name in _TABLE["marked"].split():
            return ("s", f"{name} {self.argument()}")
        if name == "matrix":
            rows: list[list[Node]] = [[]]
            while self.next != "\\endmatrix":
                rows[-1].append(self.binary(2))
                if self.next == "\\\\" and self.take():
                    rows.append([])
                elif self.next != "\\endmatrix":
                    self.take("&")
            self.take()
            return ("matrix", *map(tuple, filter(None, rows)))
        if token[0] == "\\" and name in FUNCTIONS:
            return self._call(name)
        raise NotRead(token)

    def argument(self) -> Node:  # a group, or one sign; of a number one digit
        if self.next.isdigit():
            self.tokens[self.at : self.at + 1] = [*self.next]
        return self.primary()

    def _call(self, name: str) -> Node:
        if name == "sqrt":
            index = self.primary() if self.next == "[" else None
            value = self.argument()
            return ("^", value, ("/", ("n", Fraction(1), 0), index)) if index else ("sqrt", value)
        exponent = base = None
        while self.next in ("^", "_"):
            if self.take() == "^":
                exponent = self.factor(script=True)
            else:
                base = self.argument()
        value = self.primary() if self.next in _GROUPS else self.factor()
        while name != "surd" and (last := self.tokens[self.at - 1]) not in ")}|" and self._factor_follows(last, True):
            value = ("*", value, self.factor())
        if exponent == ("n", -1, 0):
            name, exponent = f"arc{name}", None
        node = ("/", ("ln", value), ("ln", base)) if name == "log" and base else (name, value)
        return ("^", node, exponent) if exponent else node
