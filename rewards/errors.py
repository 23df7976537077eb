"""The two ways a command may end early; every entry point turns them into one line and an exit code."""

from __future__ import annotations


class BadInput(Exception):
    """The user's input or configuration is wrong: refused before or without loss (exit code 2).

    The message is one line that names the offending value and the fix.
    """


class Fault(Exception):
    """Something broke while running (dead server, NaN, failing reward): state is saved, exit code 3.

    The message is one line that names what broke and what to do next.
    """
