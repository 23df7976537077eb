"""One Python program in a sandbox made by bubblewrap: no network, no files but Python's own, hard limits.
Why it is built this way, and what it does not cover: docs/decisions/code-sandbox.md."""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from rewards.errors import BadInput, one_line

MIB, CHUNK = 2**20, 2**16
FILES_MB = 8  # one file, and the whole of the private /tmp
RUNNER = Path(__file__).with_name("sandboxed.py").read_text()
PYTHON = Path(getattr(sys, "_base_executable", sys.executable)).resolve()  # never a virtual environment's
LIB = PYTHON.parent.parent / "lib"
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/nix/store", "/etc/ld.so.cache")
ENVIRONMENT = {"HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}  # the seed: the same verdict each time
WALLS = f"""--die-with-parent --new-session --proc {{0}}/proc --dev {{0}}/dev --remount-ro {{0}}/dev
 --perms 1777 --size {FILES_MB * MIB} --tmpfs {{0}}/tmp --chdir {{0}}/tmp --remount-ro /"""
AS_USER = "--unshare-all --unshare-user --disable-userns"
AS_ROOT = """--unshare-ipc --unshare-pid --unshare-net --unshare-uts --unshare-cgroup-try --cap-drop ALL
 --cap-add CAP_SYS_CHROOT --cap-add CAP_SETUID --cap-add CAP_SETGID"""


@dataclass(frozen=True)
class Limits:
    """What a program may use: wall clock of the whole, address space of one process, processes and threads in all."""

    time_limit: float = 4.0
    memory_mb: int = 512
    processes: int = 8


@dataclass(frozen=True)
class Sandbox:
    """A way to start programs: bubblewrap's command, empty for none at all; a root and a user id to take."""

    walls: tuple[str, ...] = ()
    user: str = ""

    def run(self, program: str, stdin: str, limits: Limits, max_output: int, mode: str = "script") -> tuple[bytes, str]:
        """Run a program to its end or its limits: its stdout, and why it failed, empty where it did not.
        mode `call`: stdin is JSON {fn_name, args}, the output is the value as JSON. Nothing that it started lives on.
        Raises RuntimeError where the program did not even begin, which is no fault of its own."""
        deadline = time.monotonic() + limits.time_limit
        with contextlib.ExitStack() as stack:
            job, given, errors = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
            for file, text in ((job, program), (given, stdin)):
                file.write(text.encode(errors="surrogatepass"))
                file.seek(0)
            os.fchmod(given.fileno(), 0o444)  # for open("/dev/stdin")
            here = "/" if self.walls else stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            runner = [str(PYTHON), "-s", "-P", "-B", "-X", "utf8", "-c", RUNNER, str(job.fileno()), mode]
            last = f"{self.user} CPU={int(limits.time_limit) + 1} NPROC={limits.processes} NOFILE=24 CORE=0"
            last += f" AS={limits.memory_mb * MIB} FSIZE={FILES_MB * MIB}"  # limits that the runner sets itself
            process = subprocess.Popen(
                [*self.walls, *runner, *last.split()], stdin=given, stdout=subprocess.PIPE, stderr=errors, cwd=here,
                env={} if self.walls else ENVIRONMENT, pass_fds=[job.fileno()], process_group=None if self.walls else 0,
            )  # fmt: skip
            assert process.stdout is not None
            pipe, output, fault = process.stdout, b"", f"no end within {limits.time_limit:.3g} s"
            stack.enter_context(pipe)
            stack.callback(end, process, pipe, not self.walls)
            with contextlib.suppress(TimeoutError, subprocess.TimeoutExpired):
                output = read(pipe, deadline, max_output)
                fault = f"more than {max_output} bytes of output"
                if len(output) <= max_output:
                    code = process.wait(max(0.0, deadline - time.monotonic()))
                    errors.seek(0)
                    said = errors.read(CHUNK).decode(errors="replace").strip().rpartition("\n")[2]
                    fault = one_line(f"exit code {code} {said}") if code else ""
            if os.fstat(job.fileno()).st_size:
                raise RuntimeError(f"the sandbox did not start: {fault}")
            return output, fault


def end(process: subprocess.Popen[bytes], pipe: IO[bytes], bare: bool) -> None:
    """Kill a program with what it started, and wait until all are gone."""
    if bare:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:  # bubblewrap, which is stopped first, so as to hide no child
        parent = psutil.Process(process.pid)
        parent.suspend()
        while parent.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
            time.sleep(0.001)
        for victim in (*parent.children(), parent):
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
    process.wait()
    with contextlib.suppress(TimeoutError):
        read(pipe, time.monotonic() + 1.0, FILES_MB * MIB)  # the last to die closes it


def read(pipe: IO[bytes], deadline: float, most: int) -> bytes:
    """What comes until everybody has closed the pipe, or it is more than `most` bytes. Raises TimeoutError."""
    output = bytearray()
    while len(output) <= most:
        if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        if not (chunk := os.read(pipe.fileno(), CHUNK)):
            break
        output += chunk
    return bytes(output)


def bubblewrap(bwrap: str, spaces: str, root: str = "") -> tuple[str, ...]:
    """The command in front of the program's, which lives below `root`: what is not named here does not exist for it."""
    argv = [bwrap, "--clearenv", *[word for pair in ENVIRONMENT.items() for word in ("--setenv", *pair)]]
    for top in sorted({"", root}):
        argv += [word for path in reversed(PYTHON.parents) for word in ("--perms", "0755", "--dir", f"{top}{path}")]
        argv += [word for path in (*LIBRARIES, LIB, PYTHON) for word in ("--ro-bind-try", str(path), f"{top}{path}")]
    packages = {path for lib in (LIB, Path("/usr/lib")) for path in lib.glob("python3*/*-packages")}
    argv += [word for path in sorted(packages) for word in ("--tmpfs", f"{root}{path}")]  # the standard library alone
    return (*argv, *f"{spaces} {WALLS}".format(root).split())


def find_sandbox(allow_unsandboxed: bool = False) -> Sandbox:
    """A sandbox in which a program has just run. Raises BadInput where none works, unless none is allowed."""
    bwrap = shutil.which("bwrap") or "bwrap (not on PATH)"
    sandbox = Sandbox(bubblewrap(bwrap, AS_USER))
    if os.geteuid() == 0:
        user = f"UID={20_000 + os.getpid() % 40_000}"  # nobody's, and no other worker's
        sandbox = Sandbox(bubblewrap(bwrap, AS_ROOT, "/jail"), f"CHROOT=/jail {user}")
    try:
        if (outcome := sandbox.run("print(6 * 7)", "", Limits(10), 100)) == (b"42\n", ""):
            return sandbox
    except (OSError, RuntimeError) as error:
        outcome = b"", str(error)
    if allow_unsandboxed:
        return Sandbox()
    fix = "install `bubblewrap` (0.8 or newer) and allow it namespaces, or set args: {allow_unsandboxed: true}"
    raise BadInput(one_line(f"no program can run in a sandbox here ({outcome[1] or 'silence'}): {fix}"))
