"""The process between the trainer and the server: whatever dies first, and however, nothing is left behind.
usage: supervisor.py [--owned=DIRECTORY …] -- COMMAND …; on stdout the server's pid, then `exit STATUS` when it is dead.
When the trainer is gone or closes the pipe, the directories go, too. Why so: docs/decisions/server-process.md."""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
SHM = "/dev/shm"
TERM_GRACE = 2.5  # seconds between SIGTERM and SIGKILL
KILL_GRACE = 1.0  # seconds for the killed to be gone, and again for multiprocessing's tracker to unlink what they left
SCAN_EVERY = 2.0  # seconds between looks at the family's shared memory (a look takes 10 ms)
SCAN_EARLY, STARTING = 0.25, 180.0  # the same for so many seconds, in which the server makes its shared memory


def main() -> None:
    """Start the server, watch, clean up: the trainer is gone, or the server is dead and the trainer then goes."""
    split = sys.argv.index("--")
    _prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans are adopted, so that all that the server started stays below us
    terminated, write_fd = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(write_fd, b"x") and None)
    for number in (signal.SIGINT, signal.SIGHUP):  # what a terminal sends is let pass without effect
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which the server would inherit
    # The pipe alone would not do: a process that the trainer forked may hold its other end open.
    trainer_gone = [sys.stdin.fileno(), os.pidfd_open(os.getppid()), terminated]
    # Output goes to our stderr, the log: the server must hold neither of the trainer's pipes. Should somebody kill -9
    # us, the kernel sends the server a SIGTERM.
    server = subprocess.Popen(
        sys.argv[split + 1 :], stdin=subprocess.DEVNULL, stdout=2,
        preexec_fn=lambda: _prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
    )  # fmt: skip
    _tell(str(server.pid))
    server_fd, started = os.pidfd_open(server.pid), time.monotonic() + STARTING
    segments: set[int] = set()
    while not (ready := _ready([*trainer_gone, server_fd], SCAN_EARLY if time.monotonic() < started else SCAN_EVERY)):
        segments |= mapped_segments()
        # Collect adopted processes that have ended; the server's own status is left for its `wait`.
        ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while (child := os.waitid(os.P_ALL, 0, ended)) is not None and child.si_pid != server.pid:
            os.waitpid(child.si_pid, 0)
    if ready == {server_fd}:
        _tell(f"exit {server.wait()}")
    end_family(segments | mapped_segments())
    _ready(trainer_gone, None)
    for flag in sys.argv[1:split]:
        shutil.rmtree(flag.removeprefix("--owned="), ignore_errors=True)


def mapped_segments() -> set[int]:
    """The shared memory that the family uses. By inode: a semaphore is mapped under a name that it lost at birth."""
    found: set[int] = set()
    for pid in descendants():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps") as maps:
            found.update(int(line.split()[4]) for line in maps if f" {SHM}/" in line)
    return found


def end_family(segments: set[int]) -> None:
    """SIGTERM, a few seconds, SIGKILL; then remove the shared memory that nobody was left to unlink."""
    _signal_all(descendants(), signal.SIGTERM)
    if not _all_gone(TERM_GRACE):
        # The tracker goes last: it unlinks its processes' segments when the last of them is dead.
        _kill_until_gone(lambda: [p for p in descendants() if not _is_tracker(p)])
        _all_gone(KILL_GRACE)
        _kill_until_gone(descendants)
    with contextlib.suppress(OSError):
        for entry in os.scandir(SHM):
            if entry.inode() in segments and entry.name.startswith(("psm_", "sem.", "torch_")):
                os.unlink(entry.path)


def descendants() -> list[int]:
    """Pids of every living process below this one, from /proc."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{name}/stat") as stat:
            state, parent = stat.read().rpartition(")")[2].split()[:2]  # the command's name may hold blanks and ")"
            if state != "Z":
                children.setdefault(int(parent), []).append(int(name))
    found = [os.getpid()]
    for pid in found:  # it grows meanwhile
        found += children.get(pid, [])
    return found[1:]


def _all_gone(seconds: float) -> bool:
    """Reap for up to `seconds`; whether no child is left, and with us as the subreaper no descendant either."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.02)
        except ChildProcessError:
            return True
    return False


def _kill_until_gone(pids: Callable[[], list[int]]) -> None:
    """SIGKILL what `pids()` lists until it lists nothing: a process may fork while we walk."""
    deadline = time.monotonic() + KILL_GRACE
    while (living := pids()) and time.monotonic() < deadline:
        _signal_all(living, signal.SIGKILL)
        _all_gone(0.05)


def _signal_all(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _is_tracker(pid: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as cmdline:
        return b"multiprocessing.resource_tracker" in cmdline.read()
    return False


def _ready(fds: list[int], seconds: float | None) -> set[int]:
    """Those of `fds` that became readable or hung up within `seconds` (None = for ever)."""
    return set(select.select(fds, [], [], seconds)[0])


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):  # the trainer may be gone
        os.write(1, f"{line}\n".encode())


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    main()
