"""`ponder` as processes of their own, held and killed by tests, and everything that they may leave behind."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from rl.checkpoint import latest_checkpoint
from rl.metrics import read_metrics
from rl.rundir import RunDir
from rollout.store import read

ROOT = Path(__file__).parents[2]
PLANT = Path(__file__).with_name("plant")
PR_SET_CHILD_SUBREAPER = 36
PATIENCE = 240.0
"""Seconds that one wait may take; a server starts in 30 s on an idle machine."""

SMALL = (
    "configs/quickstart.yaml", "rollout.problems=8", "rollout.group_size=4", "rewards.workers=1", "eval.every=0",
    "train.checkpoint_every=2", "server.kv_cache_gb=0.25",
)  # fmt: skip


class Command:
    """One command, running; its output is a file."""

    def __init__(self, arguments: list[str], env: dict[str, str], home: Path, number: int) -> None:
        self.output, self.holds = home / f"{number}.txt", home / f"holds-{number}"
        self.holds.mkdir()
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                arguments, env=env | {"HOLD_DIR": str(self.holds)}, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT,
            )  # fmt: skip

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.output.read_text()

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition while the command runs."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, f"exit {self.process.returncode}: {self.text}"
            assert time.monotonic() < deadline, self.text
            time.sleep(0.02)

    def held(self, point: str) -> None:
        """Wait until it stands at PHASE:STEP."""
        self.until((self.holds / point).exists)

    def go(self, point: str) -> None:
        """Let it go on."""
        (self.holds / point).unlink()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def ends(self, code: int, *words: str, within: float = PATIENCE) -> str:
        """Wait for its end, check the exit code and words of the last line; the whole output."""
        found = self.process.wait(within)
        assert found == code, self.text
        last = self.text.strip().splitlines()[-1] if self.text.strip() else ""
        assert all(word in last for word in words), self.text
        assert "Traceback" not in self.text
        return self.text


class Household:
    """Where commands run, and what is left of them: processes, shared memory, temporary and sync directories.

    Orphans of what is killed are adopted, so they stay countable, and other people's processes do not count.
    """

    def __init__(self, home: Path) -> None:
        self.home, self.runs = home, home / "runs"
        self.tmp = Path(tempfile.mkdtemp(prefix="p", dir="/tmp"))  # short: sockets in it have at most 107 letters
        self.sync = Path(tempfile.mkdtemp(prefix="ponder-slow-", dir="/dev/shm"))
        self.commands: list[Command] = []
        self._strangers = {child.pid for child in psutil.Process().children(recursive=True)}
        self._mounts: list[Path] = []
        self._segments: set[int] = set()  # inodes in /dev/shm that our processes have mapped

    def start(self, *arguments: str, hold: str = "", env: dict[str, str] | None = None) -> Command:
        """Start `ponder`, or with a first argument that is a path another program."""
        program = [] if "/" in arguments[0] else [sys.executable, "-m", "rl.cli"]
        full = os.environ | {"TMPDIR": str(self.tmp), "PYTHONPATH": f"{PLANT}:{ROOT}", "HOLD": hold} | (env or {})
        command = Command([*program, *arguments], full, self.home, len(self.commands))
        self.commands.append(command)
        return command

    def train(self, name: str, *overrides: str, hold: str = "", env: dict[str, str] | None = None) -> Command:
        """Start a small run."""
        return self.start("train", *SMALL, *self.places(name), *overrides, hold=hold, env=env)

    def resume(self, name: str, *overrides: str, hold: str = "", env: dict[str, str] | None = None) -> Command:
        """Go on with a run."""
        return self.start("train", "--resume", str(self.runs / name), *overrides, hold=hold, env=env)

    def places(self, name: str) -> tuple[str, ...]:
        """Overrides that keep a run in here."""
        return f"run.dir={self.runs}", f"run.name={name}", f"sync.dir={self.sync}"

    def run(self, name: str) -> RunDir:
        """A run's directory."""
        return RunDir(self.runs / name)

    def alive(self, pattern: str = "") -> dict[int, str]:
        """Pid and command line of our processes that live, of those alone whose command line has the pattern in it."""
        found = {}
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # a zombie counts as none
                command = " ".join(process.cmdline())
                if process.pid not in self._strangers and pattern in command:
                    found[process.pid] = command
        return found

    def look(self) -> None:
        """Note which shared memory is ours."""
        for pid in self.alive():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/maps") as maps:
                self._segments.update(int(line.split()[4]) for line in maps if " /dev/shm/" in line)

    def kill(self, pid: int) -> None:
        """kill -9, when it is known what is there."""
        self.look()
        os.kill(pid, signal.SIGKILL)

    def is_empty(self, within: float = 12.0) -> None:
        """Nothing is left, or not for longer than the supervisor's grace."""
        deadline = time.monotonic() + within
        while (left := self._left()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert left == []

    def _left(self) -> list[str]:
        shared = [entry.path for entry in os.scandir("/dev/shm") if entry.inode() in self._segments]
        files = [str(path) for path in (*self.sync.iterdir(), *self.tmp.glob("ponder-*"))]
        return [command[:100] for command in self.alive().values()] + shared + files

    def small_disk(self, path: Path, megabytes: int) -> bool:
        """Mount a small file system at `path` until the end; False where that takes rights that we lack."""
        path.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, timeout=20).returncode != 0:
            return False
        self._mounts.append(path)
        return True

    def close(self) -> None:
        """End what a failed test has left, and reap it."""
        for pid in self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for command in self.commands:
            command.process.wait(20)
        for child in psutil.Process().children():
            if child.pid not in self._strangers:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(child.pid, 0)
        for path in self._mounts:
            subprocess.run(["umount", "--lazy", str(path)], check=True, timeout=20)
        for path in (self.tmp, self.sync):
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def household(home: Path) -> Iterator[Household]:
    """A Household whose orphans come to this process."""
    _adopt(True)
    house = Household(home)
    try:
        yield house
    finally:
        house.close()
        _adopt(False)


def _adopt(on: bool) -> None:
    assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0) == 0


def fill(path: Path, leave: int = 0) -> Path:
    """A new file that takes all room of a small disk but `leave` bytes."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 16)):
            pass
    os.truncate(path, max(0, path.stat().st_size - leave))
    return path


def server_pid(run: RunDir) -> int:
    """Pid of the process that listens."""
    return int(json.loads(run.server.read_text())[0]["pid"])


def saved_step(run: RunDir) -> int:
    """Step of the newest sound checkpoint, 0 where there is none."""
    found = latest_checkpoint(run.checkpoints, lambda text: pytest.fail(text))
    return found.step if found else 0


def survivors(run: RunDir) -> bytes:
    """The lines of the metrics that a resume has to keep."""
    lines = run.metrics.read_bytes().splitlines(keepends=True) if run.metrics.exists() else []
    return b"".join(lines[: saved_step(run)])


def assert_whole(run: RunDir, steps: int, kept: bytes = b"") -> None:
    """Each step once in metrics and samples, what had to be kept kept, the last step saved, no draft left."""
    every = list(range(1, steps + 1))
    assert [row["step"] for row in read_metrics(run.metrics)] == every
    assert [step for step, _ in read(run.samples)] == every
    assert run.metrics.read_bytes().startswith(kept)
    assert saved_step(run) == steps
    assert not list(run.checkpoints.glob(".*"))
