"""What a program can reach and use in the sandbox, and how it is told from a sandbox that does not work."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewards import sandbox as module
from rewards.errors import BadInput
from rewards.sandbox import FILES_MB, MIB, Limits, Sandbox, find_sandbox
from tests.rewards.conftest import programs

pytestmark = pytest.mark.usefixtures("nothing_left")


def run(sandbox: Sandbox, program: str, stdin: str = "", seconds: float = 10.0) -> tuple[bytes, str]:
    return sandbox.run(program, stdin, Limits(seconds), MIB)


def fault(sandbox: Sandbox, program: str, seconds: float = 10.0) -> str:
    return run(sandbox, program, seconds=seconds)[1]


def said(sandbox: Sandbox, program: str, stdin: str = "") -> str:
    output, wrong = run(sandbox, program, stdin)
    assert not wrong
    return output.decode().strip()


def test_a_program_runs_as_python_runs_a_file(sandbox: Sandbox) -> None:
    program = "from __future__ import annotations\nimport sys\nprint(__name__, __file__, sys.argv, sorted(globals()))"
    name, file, argv, names = said(sandbox, program).split(maxsplit=3)
    assert (name, file, argv) == ("__main__", "program.py", "['program.py']")
    ours = {"limit", "script", "call", "SOURCE", "os", "resource", "importlib", "run", "given", "file"}
    assert not ours & set(json.loads(names.replace("'", '"')))
    assert fault(sandbox, "print(os)").endswith("NameError: name 'os' is not defined")


@pytest.mark.parametrize(
    "read", ["input()", "sys.stdin.read()", "open(0).read()", "open('/dev/stdin').read()", "os.read(0, 99).decode()"]
)
def test_every_way_to_read_stdin(sandbox: Sandbox, read: str) -> None:
    assert said(sandbox, f"import os, sys\nprint({read})", "7 \N{SNOWMAN}") == "7 \N{SNOWMAN}"


def test_stdin_is_a_file_of_the_inputs_size(sandbox: Sandbox) -> None:
    assert said(sandbox, "import os\nprint(os.fstat(0).st_size)", "x" * 300_000) == "300000"


def test_a_call_returns_data_and_prints_nowhere(sandbox: Sandbox) -> None:
    job = json.dumps({"fn_name": "f", "args": {"a": 1, "b": [2]}})
    program = "print('hi')\ndef f(a, b): print(a); return {1: (a, b)}\nif __name__ == '__main__': 1 / 0"
    assert sandbox.run(program, job, Limits(10), 100, "call") == (b'{"1": [1, [2]]}', "")


def test_the_same_program_says_the_same_each_time(sandbox: Sandbox) -> None:
    program = "print(*{'a', 'b', 'c', 'd', 'e', 'f'})"
    assert len({said(sandbox, program) for _ in range(4)}) == 1


@pytest.mark.parametrize(
    ("program", "name"),
    [
        ("1 / 0", "exit code 1 ZeroDivisionError: division by zero"),
        ("print(1); exit(3)", "exit code 3"),
        ("import os; os.abort()", "exit code 134"),
        ("def", "exit code 1 SyntaxError: invalid syntax"),
        ("print('x' * 2**21)", "more than 1048576 bytes of output"),
        ("x = bytearray(2**30)", "exit code 1 MemoryError"),
    ],
)
def test_faults_are_named(sandbox: Sandbox, program: str, name: str) -> None:
    assert fault(sandbox, program).startswith(name)


def test_there_is_nothing_but_python(sandbox: Sandbox, user: int) -> None:
    program = """
import json, os, sys
print(json.dumps({
    "root": sorted(os.listdir("/")), "tmp": os.listdir("/tmp"), "env": dict(os.environ),
    "ids": [os.getuid(), *os.getgroups()],
    "pids": [name for name in os.listdir("/proc") if name.isdigit()], "tools": os.path.exists("/usr/bin/env"),
    "packages": [name for path in sys.path if path.endswith("-packages") for name in os.listdir(path)],
    "links": os.listdir("/sys/class/net") if os.path.exists("/sys") else [],
}))"""
    seen = json.loads(said(sandbox, program))
    assert set(seen["root"]) <= {"dev", "etc", "lib", "lib64", "nix", "proc", "tmp", "usr", "opt", "root", "home"}
    assert (seen["tmp"], seen["pids"], seen["tools"], seen["packages"]) == (["program.py"], ["1", "2"], False, [])
    assert seen["env"].keys() <= {"HOME", "LANG", "PYTHONHASHSEED", "PWD", "LC_CTYPE"}
    assert seen["ids"][0] == user
    if sandbox.user:
        assert user != os.getuid()


@contextlib.contextmanager
def listener(address: str | tuple[str, int]) -> Iterator[socket.socket]:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as server:
        server.bind(address)
        server.listen()
        server.settimeout(0.2)
        yield server


def test_no_socket_of_this_machine_is_reached(sandbox: Sandbox) -> None:
    abstract = f"\0ponder-{os.getpid()}"
    with listener(("127.0.0.1", 0)) as tcp, listener(abstract) as unix:
        for family, address in (("AF_INET", tcp.getsockname()), ("AF_UNIX", abstract)):
            program = f"import socket\nsocket.socket(socket.{family}).connect({address!r})"
            assert "Connection refused" in fault(sandbox, program)
        for server in (tcp, unix):
            with pytest.raises(TimeoutError):
                server.accept()


def test_only_the_private_tmp_can_be_written(sandbox: Sandbox, tmp_path: Path) -> None:
    places = ["/", "/dev", "/dev/shm", "/usr/lib", os.path.dirname(os.__file__), str(tmp_path), "/proc", "/etc"]
    program = f"""
import os, stat
def fails(place):
    try: open(place + "/canary", "w"); return False
    except OSError: return True
print(all(map(fails, {places})), open("/tmp/x", "w").write("ok"))"""
    assert said(sandbox, program) == "True 2"
    assert not [place for place in (*places, "/tmp") if os.path.exists(f"{place}/canary")]
    assert not os.path.exists("/tmp/program.py")


def test_tmp_and_files_are_bounded(sandbox: Sandbox) -> None:
    program = """
import os
total = 0
try:
    for i in range(10):
        with open(f"/tmp/{i}", "wb", buffering=0) as file:
            for _ in range(4): total += file.write(bytes(2**20))
except OSError as error: print(error.errno, total >> 20)"""
    number, megabytes = said(sandbox, program).split()
    assert int(number) in (27, 28)  # EFBIG, ENOSPC
    assert 4 <= int(megabytes) <= FILES_MB


def test_processes_and_open_files_are_counted(sandbox: Sandbox) -> None:
    program = """
import os, threading, time
made = 0
try:
    while made < 200: threading.Thread(target=time.sleep, args=(0.3,)).start(); made += 1
except RuntimeError: pass
files = []
try:
    while len(files) < 200: files.append(open("/dev/null"))
except OSError: pass
print(made, len(files))"""
    made, files = map(int, said(sandbox, program).split())
    assert made < 8
    assert files < 24


def test_limits_cannot_be_raised_and_root_is_given_up(sandbox: Sandbox) -> None:
    program = """
import ctypes, os, resource
def fails(call, *arguments):
    try: call(*arguments); return False
    except (OSError, ValueError): return True
def unshare(flags):  # a user namespace, in which one could mount; a mount namespace
    if ctypes.CDLL(None).unshare(flags): raise OSError
print(
    fails(resource.setrlimit, resource.RLIMIT_AS, (-1, -1)), fails(resource.setrlimit, resource.RLIMIT_NPROC, (99, 99)),
    fails(os.setuid, 0) or os.geteuid() == os.getuid() != 0 or "userns", fails(os.chroot, "/tmp"), fails(os.nice, -5),
    fails(os.kill, 1, 9) or "ignored", fails(unshare, 0x10000000), fails(unshare, 0x00020000),
)"""
    words = said(sandbox, program).split()
    assert "False" not in words


def test_capabilities_and_new_privileges_are_gone(sandbox: Sandbox) -> None:
    lines = said(sandbox, "print(open('/proc/self/status').read())").splitlines()
    status = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapAmb"], 16) == 0
    assert status["NoNewPrivs"] == "1"


def test_a_hang_ends_at_the_limit_with_all_it_started(sandbox: Sandbox) -> None:
    program = """
import os, signal, sys, time
for number in range(1, 32):
    if number not in (9, 19): signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: os.close(1); time.sleep(1e6)
print("here", flush=True); time.sleep(1e6)"""
    start = time.monotonic()
    assert fault(sandbox, program, 1.0) == "no end within 1 s"
    assert 1.0 <= time.monotonic() - start < 3.0


def test_a_daemon_ends_with_its_program(sandbox: Sandbox) -> None:
    program = """
import os, time
if os.fork() == 0:
    os.setsid()
    for fd in range(3): os.close(fd)
    time.sleep(1e6)
print("done")"""
    start = time.monotonic()
    assert said(sandbox, program) == "done"
    assert time.monotonic() - start < 5


def test_two_programs_share_nothing(sandbox: Sandbox) -> None:
    assert said(sandbox, "open('/tmp/left', 'w').write('x'); print(1)") == "1"
    assert said(sandbox, "import os; print(os.path.exists('/tmp/left'))") == "False"


def test_bubblewrap_that_is_missing_or_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match=r"bwrap \(not on PATH\).*install `bubblewrap`.*allow_unsandboxed"):
        find_sandbox()
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho bwrap: No permissions to create new namespace >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(stat.S_IRWXU)
    with pytest.raises(BadInput, match="exit code 1 bwrap: No permissions to create new namespace"):
        find_sandbox()
    (tmp_path / "bwrap").write_text("#!/bin/sh\nexit 0\n")  # it claims to work, and runs nothing
    with pytest.raises(BadInput, match="did not start"):
        find_sandbox()
    assert find_sandbox(allow_unsandboxed=True) == Sandbox()


def test_a_sandbox_that_stops_working_is_no_fault_of_the_program() -> None:
    with pytest.raises(RuntimeError, match="did not start: exit code 1"):
        Sandbox(walls=("/bin/sh", "-c", "exit 1")).run("print(1)", "", Limits(), 100)


def test_without_a_sandbox_the_limits_of_a_process_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bare = Sandbox()
    assert said(bare, "import os; open('x', 'w'); print(os.getcwd())") != str(tmp_path)
    assert not list(tmp_path.iterdir())
    assert fault(bare, "x = bytearray(2**30)") == "exit code 1 MemoryError"
    assert fault(bare, "import time; time.sleep(1e6)", 0.5) == "no end within 0.5 s"
    for program in ("import os; os.fork()\nwhile True: pass", "import os\nif os.fork() == 0:\n  while True: pass"):
        run(bare, program, seconds=0.7)
    assert not programs()


def test_a_limit_that_hits_while_the_sandbox_is_being_built_leaves_nothing(sandbox: Sandbox) -> None:
    for milliseconds in range(1, 31):
        with contextlib.suppress(RuntimeError):
            run(sandbox, "import time; time.sleep(1e6)", seconds=milliseconds / 1000)


KILLED = """
import os, sys, threading
from rewards.sandbox import Limits, find_sandbox
sandbox = find_sandbox()
threading.Timer(float(sys.argv[1]), {"group": os.killpg, "process": os.kill}[sys.argv[2]], (os.getpid(), 9)).start()
sandbox.run("import os, time\\nos.fork()\\nprint(flush=True)\\ntime.sleep(1e6)", "", Limits(600), 100)
"""


@pytest.mark.parametrize(
    "seconds", [0.003, 0.01, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.001, 0.002, 0.005, 0.02, 0.03, 0.5))]
)
def test_programs_end_with_the_group_of_the_process_that_judges_them(sandbox: Sandbox, seconds: float) -> None:
    """The pool kills a worker's group, at any time."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(seconds), "group"], start_new_session=True, timeout=60)
    assert done.returncode == -9


def test_programs_end_with_the_process_that_judges_them(sandbox: Sandbox) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, "0.5", "process"], timeout=60).returncode == -9


def test_it_needs_no_root(sandbox: Sandbox) -> None:
    """The command of an ordinary user, run by whoever we are."""
    other = Sandbox(module.bubblewrap(sandbox.walls[0], module.AS_USER))
    assert said(other, "import os; print(os.listdir('/tmp'))") == "['program.py']"
