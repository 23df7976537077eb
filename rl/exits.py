"""Exit codes, in one place: 0 done, 1 a check did not hold, 2 bad input, 3 stopped by a fault, 128 + signal."""

import asyncio
import errno
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any, Self, TypeVar

from rewards.errors import BadInput, Fault

T = TypeVar("T")

DEFAULTS: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class CheckFailed(Exception):
    """A check that the user asked for did not hold (exit 1); the command has printed what."""


class Stopped(Exception):
    """The run was stopped by a signal after saving (exit 128 + signal)."""

    def __init__(self, signum: int, where: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}{where}")
        self.signum, self.exit_code = signum, 128 + signum


class StopSignal:
    """Within its block, the first SIGINT or SIGTERM asks for a stop; the same signal again acts as it always does.
    Python's handlers rather than asyncio's, which would not answer while the learner keeps the loop busy."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._asked = asyncio.Event()

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._before = {signum: signal.signal(signum, self._on_signal) for signum in DEFAULTS}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def check(self) -> None:
        if self.signum is not None:
            raise Stopped(self.signum)

    async def guard(self, work: Awaitable[T]) -> T:
        """Await `work`; where a signal comes first, cancel it, wait until it has ended and raise Stopped."""
        task, asked = asyncio.ensure_future(work), asyncio.ensure_future(self._asked.wait())
        try:
            await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self.check()
            return task.result()
        finally:
            asked.cancel()
            task.cancel()  # no effect on one that is done
            await asyncio.gather(task, asked, return_exceptions=True)

    def _on_signal(self, signum: int, _: FrameType | None) -> None:
        self.signum = signum
        signal.signal(signum, DEFAULTS[signum])
        os.write(2, b"ponder: stopping at the next safe point (again to give up on it)\n")  # print is not reentrant
        self._loop.call_soon_threadsafe(self._asked.set)


def run_command(call: Callable[[], int | None]) -> int:
    """Call a command line and turn how it ends into an exit code and at most one line on stderr."""
    import typer

    wrong_usage: Any = typer.BadParameter.__mro__[2]  # the base class, in whichever copy of click typer carries
    try:
        code = call() or 0  # commands return None; typer answers a Ctrl-C, or an Exit, with its code
    except (BadInput, Fault, Stopped) as error:
        return _say(str(error), error.exit_code)
    except CheckFailed:
        return 1
    except wrong_usage as error:
        return _say(error.format_message(), error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        return _say(f"no space left on the disk ({error.filename or 'while writing'}); free some and go on", 2)
    return _say("interrupted", code) if code == 130 else code


def _say(message: str, code: int) -> int:
    if code == 2 and os.environ.get("RANK", "0") != "0":
        time.sleep(3)  # every rank finds the same; rank 0 says it, and a launcher ends all of them with the first
    else:
        print(f"ponder: {' '.join(message.split())}", file=sys.stderr)
    return code
