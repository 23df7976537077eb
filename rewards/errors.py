"""The two ways a command may end early; every entry point turns them into one line and an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Collection

MAX_LINE = 500
"""Longest reason that is kept, characters."""


class BadInput(Exception):
    """The user's input or configuration is wrong: refused before or without loss (exit code 2).

    The message is one line that names the offending value and the fix.
    """


class Fault(Exception):
    """Something broke while running (dead server, NaN, failing reward): state is saved, exit code 3.

    The message is one line that names what broke and what to do next.
    """


def one_line(text: str) -> str:
    """At most MAX_LINE characters, without line breaks."""
    return " ".join(text[: 4 * MAX_LINE].split())[:MAX_LINE]


def nearest(wrong: str, known: Collection[str]) -> str:
    """A hint for a misspelt name: the closest known one, else all of them."""
    hits = difflib.get_close_matches(wrong, known, n=1)
    return f"did you mean {hits[0]!r}?" if hits else f"known: {', '.join(known)}"
