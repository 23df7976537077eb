"""The two ways a command may end early; every entry point turns them into one line and an exit code."""

import difflib
from collections.abc import Collection

MAX_LINE = 500  # characters


class BadInput(Exception):
    """Wrong input or configuration, refused before or without loss (exit 2). One line: the offending value, the fix."""

    exit_code = 2


class Fault(Exception):
    """Something broke while running (a server, a reward, NaN): saved, exit 3. One line: what broke, what to do next."""

    exit_code = 3


def one_line(text: str) -> str:
    """At most MAX_LINE characters, without line breaks."""
    return " ".join(text[: 4 * MAX_LINE].split())[:MAX_LINE]


def nearest(wrong: str, known: Collection[str]) -> str:
    """A hint for a misspelt name: the closest known one, else all of them."""
    hits = difflib.get_close_matches(wrong, known, n=1)
    return f"did you mean {hits[0]!r}?" if hits else f"known: {', '.join(known) or 'none'}"
