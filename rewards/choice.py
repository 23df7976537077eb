"""Multiple choice: the letter, the letter with its option's text, or the text of exactly one option."""

import re
import string

from rewards.answer import after_thinking, as_text, final_answers, same, squeeze
from rewards.errors import BadInput
from rewards.types import Problem, Score

MAX_LENGTH = 2000  # characters of an answer
_MARKUP = re.compile(r"\\(?:text|math)[a-z]{0,4}\s*\{([^{}]*)\}|[*$`]|\\[()]")
_LEAD = re.compile(r"(?:(?:the|my|final|correct|right|best|answer|option|choice|is)\b[\s:]*)+", re.IGNORECASE)
_TAIL = re.compile(r" is (?:the )?(?:correct|right|best)(?: (?:answer|option|choice))?$", re.IGNORECASE)
_STATED = re.compile(r"\b(?:answer|option|choice)(?: is\b|:)", re.IGNORECASE)
_LETTER = re.compile(r"[(\[]?([A-Za-z])[)\].:,]*", re.ASCII)
_WITH_TEXT = re.compile(
    r"(?a:\(([A-Za-z])\)|([A-Za-z])(?:[).:,;]| ?[\u2013\u2014]| - | (?=because))|([A-Z])(?= ))\s*(\S.*)"
)
_ALONE = re.compile(r"(?<![\w'])[A-Z](?![\w'])", re.ASCII)


def choice(response: str, problem: Problem) -> Score:
    """Whether the final answer is the option whose letter is `problem.answer`; the options' texts are meta's `choices`.
    Without `choices` only letters are read. Raises BadInput for choices that are no list, and an answer that is none.
    """
    options, reference = problem.meta.get("choices") or [], _LETTER.fullmatch(str(problem.answer).strip())
    letters = string.ascii_uppercase[: len(options) or 26]
    if not isinstance(options, list) or len(options) > 26 or not reference or reference[1].upper() not in letters:
        raise BadInput(f"problem {problem.id!r}: answer {problem.answer!r} is no letter of its choices; A is the first")
    texts = {letter: plain(as_text(option)) for letter, option in zip(letters, options, strict=False)}
    said = _STATED.split((after_thinking(response) or "").rstrip().rpartition("\n")[2][-MAX_LENGTH:])
    stated = said[1].strip() if len(said) == 2 else ""  # by the last line, to its end
    answers = final_answers(response)
    answer = answers[-1] if answers else stated
    if not answer or len(answer) > MAX_LENGTH:
        return Score(0.0, False, "unparsed", detail="no final answer, or one too long for a choice")
    each = [chosen(plain(answer), letters, texts) for answer in answers or [answer]]
    found = set().union(*each)
    if plain(stated).startswith(plain(answer)):  # "the answer is B. London": a sentence's end to whoever reads answers
        found |= chosen(plain(stated), letters, texts, labelled=True)
    if not found:
        return Score(0.0, False, "unparsed", detail=f"{answer[:80]!r} names no option")
    correct = found == {reference[1].upper()} and all(each)
    return Score(float(correct), correct, "ok" if correct else "wrong", detail=f"chose {', '.join(sorted(found))}")


def chosen(answer: str, letters: str, texts: dict[str, str], labelled: bool = False) -> set[str]:
    """The letters that a plain answer names, if any; labelled: only a letter with the text of an option counts."""
    split, bare = _WITH_TEXT.fullmatch(answer), _LETTER.fullmatch(answer)
    letter = (split[1] or split[2] or split[3] if split else bare[1] if bare else "-").upper()
    named = _named(split[4], texts) if split else set()
    if named:
        return {letter} if letter in named else {letter} | named
    if labelled:
        return set()
    if bare and letter in letters:  # an option's text may be "A", too: the letter comes first
        return {letter}
    if named := _named(answer, texts):
        return named
    found = {letter} & set(letters) if split and not split[3] else set()
    several = set(_ALONE.findall(answer)) & set(letters) | found
    return several if found or len(several) > 1 else set()


def plain(text: str) -> str:
    """Without markup, without "the answer is" before it, "is correct" behind it, and a full stop."""
    text = squeeze(_MARKUP.sub(r"\1", text)).removesuffix(".")
    return _TAIL.sub("", _LEAD.sub("", text, count=1) if _LEAD.match(text) else text)


def _named(text: str, texts: dict[str, str]) -> set[str]:
    return {letter for letter, option in texts.items() if same(text.casefold(), option.casefold())}
