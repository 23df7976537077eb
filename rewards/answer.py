"""Where a response states its final answer, and plain equality. Strict: no answer is better than a guessed one.
Every finder is linear in the response's length: a megabyte of half-open boxes must not cost a second."""

import json
import re
from fractions import Fraction
from typing import Any

from rewards.types import Problem, Prompt, Score

OPEN, CLOSE = "<think>", "</think>"
MAX_LINE = 200  # characters of the longest answer read from running text or from a bare line
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_TAGGED = re.compile(r"<answer>([^<]*+(?:<(?!/?answer>)[^<]*+)*+)</answer>")
_HASHED = re.compile(r"^[ \t]*####(?!#)(.*)$", re.MULTILINE)
_PHRASE = r"(?:the (?:final |correct )?answer(?: to [^.:\n]{1,80}?)? is|answer(?:\*\*)?[:=])"
_END = r"[.!?](?:\\?[)\]$*\"']){0,9}(?:\s|$)"
_STATED = re.compile(  # not where another phrase follows: "Answer: the answer is"
    rf"\b{_PHRASE}[\s:*]*+(?:\$\$|\\\[)?+\s*+(?!{_PHRASE})(?=(.{{0,{MAX_LINE}}}?)(?:{_END}|$))",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_END = re.compile(_END)
_WORD = re.compile(r"(?<![\\</a-zA-Z])[^\W\d_]")  # no command, no tag
_WRAPPERS = (("**", "**"), ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("`", "`"))
_FENCES = {"", "$$", "\\]", "```"}  # lines that only close a display
MAX_NUMBER = 100  # characters that are read as a number: bounds the cost of exact arithmetic
_NUMBER = re.compile(
    r"[+-]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{1,3})?|[+-]?\d+\s*/\s*\d+", re.ASCII
)
Span = tuple[int, int]


def final_answer(response: str) -> str | None:
    """The final answer after the thinking block, or None where there is none, or a hedge between several."""
    found = final_answers(response)
    return found[0] if len(found) == 1 else None


def final_answers(response: str) -> list[str]:
    r"""The different final answers of the last sentence that states one; more than one is a hedge.
    In this order: `\boxed{x}`, `<answer>x</answer>`, `#### x`, "the answer is x", a bare last line."""
    text = after_thinking(response) or ""
    for find in (_boxes, _TAGGED, _HASHED, _STATED, _bare_line):
        spans = [match.span(1) for match in find.finditer(text)] if isinstance(find, re.Pattern) else find(text)
        found: dict[str, str] = {}
        begun = 0
        for start, end in reversed(spans):
            if answer := _unwrap(text[start:end]):
                gap = text[end:begun]  # to the answer behind it: may end a sentence, or a paragraph before more words
                if _SENTENCE_END.search(gap) or ("\n\n" in gap and _WORD.search(gap.rpartition("\n\n")[2])):
                    break
                found.setdefault(squeeze(answer), answer)
                begun = start
        if found:
            return list(found.values())[::-1]
    return []


def after_thinking(response: str) -> str | None:
    """What stands after the thinking block; the whole response where there is none; None if it is unclosed."""
    _, close, rest = response.rpartition(CLOSE)
    return None if OPEN in (rest if close else response) else rest


def with_open_tag(response: str, prompt: Prompt) -> str:
    """The response with `<think>` before it where the prompt ends inside a thinking block that it opened."""
    tail = prompt if isinstance(prompt, str) else str(prompt[-1].get("content", "")) if prompt else ""
    return OPEN + response if tail.rstrip().endswith(OPEN) and not response.lstrip().startswith(OPEN) else response


def squeeze(text: str) -> str:
    """The text with every run of blanks as one space."""
    return " ".join(text.split())


def boxed(text: str) -> list[str]:
    r"""Contents of the outermost `\boxed{…}` with balanced braces, in order."""
    return [text[start:end] for start, end in _boxes(text)]


def _boxes(text: str) -> list[Span]:
    opened: list[tuple[int, bool]] = []  # (start of the content, whether a box opened it)
    spans: list[Span] = []
    first = min((place for name in ("\\boxed", "\\fbox") if (place := text.find(name)) >= 0), default=len(text))
    for match in _BRACES.finditer(text, first):
        token = match.group()
        if token[-1] == "{" and token != "\\{":
            opened.append((match.end(), token != "{"))
        elif token == "}" and opened:
            start, is_box = opened.pop()
            if is_box:
                while spans and spans[-1][0] > start:  # a box inside this one
                    spans.pop()
                spans.append((start, match.start()))
    return spans


def _bare_line(
    text: str,
) -> list[Span]:  # the last one, unless it is long or a sentence: a number in prose is no answer
    start = len(text)
    for whole in reversed(text.splitlines(keepends=True)):
        start -= len(whole)
        line = whole.strip()
        if line not in _FENCES:
            prose = line[-1] in ".!?" and sum(word[0].isalpha() for word in line[:MAX_LINE].split()) > 3
            return [] if len(line) > MAX_LINE or prose else [(start, start + len(whole))]
    return []


def _unwrap(text: str) -> str:
    """Without blanks, a closing full stop, and a layer each of the Markdown and LaTeX around it."""
    text = text.strip().removesuffix(".").rstrip()
    for left, right in _WRAPPERS:
        inner = text.removeprefix(left).removesuffix(right).strip().removesuffix(".").rstrip()
        if inner and left not in inner and right not in inner:
            text = inner
    return text


def exact_match(response: str, problem: Problem) -> Score:
    """Whether the final answer equals `problem.answer`: 0.50 equals 1/2, blanks don't matter, case does."""
    answer = final_answer(with_open_tag(response, problem.prompt))
    if answer is None:
        return Score(0.0, False, "unparsed", detail="no final answer")
    right = same(answer, as_text(problem.answer))
    return Score(1.0, True, "ok") if right else Score(0.0, False, "wrong", detail=f"answered {answer[:80]!r}")


def as_text(answer: Any) -> str:
    """The text a response must state for a reference answer of any JSON type."""
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)


def same(a: str, b: str) -> bool:
    """Equal as exact numbers, or as text with blanks squeezed."""
    left, right = number(a), number(b)
    return squeeze(a) == squeeze(b) if left is None or right is None else left == right


def number(text: str) -> Fraction | None:
    """An integer, decimal or fraction in ASCII digits as an exact rational; None for anything else."""
    text = text.strip()
    try:
        read = len(text) <= MAX_NUMBER and _NUMBER.fullmatch(text)
        return Fraction(text.replace(",", "").replace(" ", "")) if read else None
    except (ValueError, ZeroDivisionError):  # 1/0, or blanks that Fraction does not know
        return None
