"""Exit codes, in one place: 0 done, 1 a check did not hold, 2 bad input, 3 stopped by a fault, 128 + signal."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Callable
from typing import Any

from rewards.errors import BadInput, Fault


class CheckFailed(Exception):
    """A check that the user asked for did not hold (exit 1); the command has printed what."""


class Stopped(Exception):
    """The run was stopped by a signal after saving (exit 128 + signal)."""

    def __init__(self, signum: int, where: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}{where}")
        self.signum = signum


def run_command(call: Callable[[], object]) -> int:
    """Call a command line and turn how it ends into an exit code and at most one line on stderr."""
    import typer

    try:
        call()
    except (BadInput, Fault) as error:
        return _say(str(error), 2 if isinstance(error, BadInput) else 3)
    except CheckFailed:
        return 1
    except Stopped as error:
        return _say(str(error), 128 + error.signum)
    except typer.Exit as error:
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return _say("interrupted", 130)
    except BrokenPipeError:  # `ponder … | head`
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return _say(f"no space left on the disk ({error.filename or 'while writing'}); free some and go on", 2)
    except Exception as error:
        if not isinstance(error, _usage_error()):
            raise
        return _say(error.format_message(), error.exit_code)
    return 0


def _usage_error() -> Any:
    """The base class of wrong command lines, in whichever copy of click typer carries."""
    import typer

    return typer.BadParameter.__mro__[2]


def _say(message: str, code: int) -> int:
    print(f"ponder: {' '.join(message.split())}", file=sys.stderr)
    return code
