"""Where a response states its final answer. Strict: no answer is better than a guessed one.

Every finder is linear in the response's length: a megabyte of half-open boxes must not cost a second.
"""

import re

OPEN, CLOSE = "<think>", "</think>"
MAX_LINE = 200  # characters of the longest answer read from running text or from a bare line
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_STATED = re.compile(r"\b(?:the (?:final |correct )?answer is|(?:final )?answer:)\s*:?\s*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)")
_WRAPPERS = (("**", "**"), ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("`", "`"))


def final_answer(response: str) -> str | None:
    r"""The final answer after the thinking block, or None.

    In this order: `\boxed{x}`, `<answer>x</answer>`, `#### x`, "the answer is x", a bare last line. Different
    answers of one kind are a hedge: None. A thinking block that is never closed holds no answer: None.
    """
    text = after_thinking(response)
    if text is None:
        return None
    for find in (boxed, _tagged, _hashed, _stated, _bare_line):
        found = [answer for answer in map(_unwrap, find(text)) if answer]
        if found:
            agree = len({squeeze(answer) for answer in found}) == 1
            return found[-1] if agree else None
    return None


def after_thinking(response: str) -> str | None:
    """What stands after the thinking block; the whole response where there is none; None if it is unclosed."""
    _, close, rest = response.rpartition(CLOSE)
    return None if OPEN in (rest if close else response) else rest


def squeeze(text: str) -> str:
    """The text with every run of blanks as one space."""
    return " ".join(text.split())


def boxed(text: str) -> list[str]:
    r"""Contents of the outermost `\boxed{…}` with balanced braces, in order."""
    opened: list[tuple[int, bool]] = []  # (start of the content, whether a box opened it)
    spans: list[tuple[int, int]] = []
    for match in _BRACES.finditer(text, max(0, text.find("\\boxed"))):
        token = match.group()
        if token[-1] == "{" and (token == "{" or token.startswith("\\boxed")):
            opened.append((match.end(), token != "{"))
        elif token == "}" and opened:
            start, is_box = opened.pop()
            if is_box:
                while spans and spans[-1][0] > start:  # a box inside this one
                    spans.pop()
                spans.append((start, match.start()))
    return [text[start:end] for start, end in spans]


def _tagged(text: str) -> list[str]:
    pieces = [piece.rpartition("<answer>") for piece in text.split("</answer>")[:-1]]
    return [content for _, tag, content in pieces if tag]


def _hashed(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines()] if "####" in text else []
    return [line[4:] for line in lines if line.startswith("####") and not line.startswith("#####")]


def _stated(text: str) -> list[str]:
    lines = [text[match.end() : match.end() + MAX_LINE + 1].partition("\n")[0] for match in _STATED.finditer(text)]
    sentences = [_SENTENCE_END.split(line, maxsplit=1)[0] for line in lines]
    return [sentence for sentence in sentences if len(sentence) <= MAX_LINE]


def _bare_line(text: str) -> list[str]:
    """The last line, unless it is long or a sentence: a number in prose is no answer."""
    line = text.rstrip().rpartition("\n")[2].strip()
    is_sentence = line[-1:] in (".", "!", "?") and sum(word[0].isalpha() for word in line[:MAX_LINE].split()) > 3
    return [] if len(line) > MAX_LINE or is_sentence else [line]


def _unwrap(text: str) -> str:
    """Without blanks, a closing full stop, and one layer of Markdown or LaTeX around it."""
    text = text.strip().removesuffix(".").rstrip()
    for left, right in _WRAPPERS:
        inner = text[len(left) : -len(right)]
        if text.startswith(left) and text.endswith(right) and inner and left not in inner:
            return inner.strip().removesuffix(".").rstrip()
    return text
