"""The code reward: which block is run, what counts as right, and that no hostile program is ever right."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rewards.code import Case, Code, last_program, read_tests
from rewards.errors import BadInput
from rewards.sandbox import Limits, Sandbox
from rewards.types import Problem, Score

HOSTILE: dict[str, dict[str, str]] = {}
for _chapter in (Path(__file__).with_name("hostile_programs.md")).read_text().split("\n# ")[1:]:
    _title, *_sections = _chapter.split("\n## ")
    HOSTILE[_title.split()[0]] = {s.partition("\n")[0]: last_program(s) or "" for s in _sections}
HOSTILE["Cheating"] |= {"NUL in the source": "print(1)\0", "a surrogate in the source": "print(1)  # \ud800"}

FIND = """
def show(found):
    for piece in str(found).replace(chr(0), " ").split():
        if "secret-" in piece:
            print(piece[piece.index("secret-"):][:39]); raise SystemExit
"""
SUM = "a, b = map(int, input().split())\nprint(a + b)"
PAIRS = [{"input": f"{a} {b}\n", "output": f"{a + b}\n"} for a, b in ((1, 2), (2, 2), (5, 5))]
CALLS = [{"fn_name": "f", "args": [[3, 1, 2]], "expected": [1, 2, 3]}, {"fn_name": "f", "args": [[]], "expected": []}]


def problem(tests: Any, **meta: Any) -> Problem:
    return Problem("p", "code", "?", None, "k", meta={"tests": tests, **meta})


def fenced(program: str, mark: str = "```python") -> str:
    return f"So:\n{mark}\n{program}\n```\nThat is it."


@pytest.fixture(scope="module")
def code(sandbox: Sandbox) -> Code:
    return Code()


@pytest.mark.parametrize(
    ("response", "program"),
    [
        (fenced("x"), "x"),
        *[
            (fenced("x", f"```{name}"), "x")
            for name in ("py", "Python", "python3", "py3", "PY", "python title=a", " python")
        ],
        (fenced("x", "```"), "x"),
        (fenced("a") + "\n" + fenced("b", "```py"), "b"),
        (fenced("a") + "\n" + fenced("b", "```"), "a"),
        (fenced("a") + "\n" + fenced("b", "```text"), "a"),
        (fenced("a", "```") + "\n" + fenced("b", "```"), "b"),
        (fenced("a", "```") + "\n" + fenced("b", "```bash"), None),
        (fenced("a", "```cpp"), None),
        ("x = 1", None),
        ("", None),
        ("`x`", None),
        (fenced(""), None),
        (fenced(" \n\t"), None),
        ("```python\nx", None),
        (fenced("a") + "\n```python\nb", None),
        (fenced("a") + "\n```\nb", "a"),
        (fenced("a") + "\n```", "a"),
        ("~~~python\nx\n~~~", "x"),
        ("````python\n```\nx\n```\n````", "```\nx\n```"),
        ("- so:\n  ```python\n  if x:\n    y\n  ```", "if x:\n  y"),
        ("```python\r\nx\r\n```\r\n", "x\r"),
        ("```python x``` is\n```python\ny\n```", "y"),
        ("<think>" + fenced("x"), None),
        ("<think>" + fenced("x") + "</think>", None),
        ("<think>" + fenced("a") + "</think>" + fenced("b"), "b"),
        (fenced("a") + "</think>" + fenced("b"), "b"),
        (fenced("x" * 2**20), "x" * 2**20),
        (fenced("x" * (2**20 + 1)), None),
    ],
)
def test_the_last_block_of_python_is_the_program(response: str, program: str | None) -> None:
    assert last_program(response) == program


@pytest.mark.parametrize("text", ["```" + " " * 200_000 + "x" * 200_000 + "`", "`" * 10**6 + "x`", "```\n" * 250_000])
def test_blocks_are_found_in_linear_time(text: str) -> None:
    start = time.monotonic()
    last_program(text)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("expected", "output", "same"),
    [
        ("5", b"5", True),
        ("5\n", b"5", True),
        ("5", b"5\n\n \n", True),
        ("1\n2", b"1 \r\n2\t\n", True),
        ("", b"", True),
        ("", b"\n", True),
        ("5", b"", False),
        ("5", b" 5", False),
        ("5", b"5\n6", False),
        ("5", b"\n5", False),
        ("1\n2", b"1 2", False),
        ("1\n2", b"1\n\n2", False),
        ("5", b"5.0", False),
        ("yes", b"YES", False),
        ("5", b"5\0", False),
        ("\N{SNOWMAN}", "\N{SNOWMAN}".encode(), True),
        ("\N{REPLACEMENT CHARACTER}", b"\xff", False),
    ],
)
def test_output_is_compared_line_by_line(expected: str, output: bytes, same: bool) -> None:
    assert Case("script", "", expected).accepts(output) is same


@pytest.mark.parametrize(
    ("expected", "output", "same"),
    [
        ([1, 2], b"[1, 2]", True),
        ({"1": None}, b'{"1": null}', True),
        (2, b"2.0", True),
        ("a", b'"a"', True),
        ("1", b"1", False),
        ([1, 2], b"[2, 1]", False),
        (0.3, b"0.30000000000000004", False),
        (None, b"", False),
        ("a", b'"b"\n"a"', False),
        ("a", b'"a" "a"', False),
        (1, b"[" * 60_000, False),
        (1, b"1" * 60_000, False),
        (float("nan"), b"NaN", False),
        ("a", b"\xff", False),
    ],
)
def test_values_are_compared_as_data(expected: Any, output: bytes, same: bool) -> None:
    assert Case("call", "", expected).accepts(output) is same


@pytest.mark.parametrize(
    ("tests", "program"),
    [
        (PAIRS, SUM),
        (PAIRS, f"def main():\n    {SUM.splitlines()[0]}\n    print(a + b)\nif __name__ == '__main__':\n    main()"),
        (PAIRS, "import sys\na, b = sys.stdin.read().split()\nsys.stdout.write(str(int(a) + int(b)))\nsys.exit()"),
        (PAIRS, "import os; a, b = os.read(0, 99).split(); os.write(1, b'%d' % (int(a) + int(b))); os._exit(0)"),
        (PAIRS, SUM + "\nimport sys; print('debug', file=sys.stderr)"),
        (
            [{"input": "", "output": 5}],
            "from dataclasses import dataclass\n@dataclass\nclass A: x: int = 5\nprint(A().x)",
        ),
        (CALLS, "def f(x): return sorted(x)"),
        (CALLS, "print('noise')\ndef f(x): print(x); return tuple(sorted(x))"),
        (CALLS, "class Solution:\n    def f(self, x): return sorted(x)"),
        (CALLS, "f = sorted\nif __name__ == '__main__':\n    print(f(input()))"),
        ([{"fn_name": "f", "args": {"a": 1, "b": 2}, "expected": {"3": True}}], "def f(b, a): return {a + b: True}"),
        ([*CALLS, {"input": "", "output": ""}], "def f(x): return sorted(x)"),
    ],
)
def test_right_programs_are_right(code: Code, tests: Any, program: str) -> None:
    assert code(fenced(program), problem(tests)) == Score(1.0, True, "ok")


RIGHT_BUT = {
    "raises": "1 / 0",
    "exits with a code": "exit(1)",
    "kills itself": "import os, sys; sys.stdout.flush(); os.kill(os.getpid(), 9)",
    "aborts": "import os, sys; sys.stdout.flush(); os.abort()",
    "crashes": "import ctypes, sys; sys.stdout.flush(); ctypes.string_at(0)",
    "raises at exit": "import atexit, os, sys; atexit.register(lambda: (sys.stdout.flush(), os._exit(2)))",
    "says more": "print('and more')",
    "runs out of memory": "x = bytearray(2**31)",
    "hangs": "import sys, time; sys.stdout.flush(); time.sleep(1e6)",
    "leaves a thread": "import threading, time; threading.Thread(target=time.sleep, args=(1e6,)).start()",
}


@pytest.mark.parametrize("name", RIGHT_BUT)
def test_right_output_does_not_excuse_what_follows(sandbox: Sandbox, name: str) -> None:
    score = Code(time_limit=1.5)(fenced(f"print(5)\n{RIGHT_BUT[name]}"), problem([{"input": "", "output": "5"}]))
    assert (score.value, score.correct, score.status) == (0.0, False, "wrong")
    assert score.detail.startswith("test 1 of 1: ")


def test_all_or_nothing_stops_at_the_first_failure_and_partial_counts(code: Code) -> None:
    half = fenced("a, b = map(int, input().split())\nprint(a + b if a != 2 else 'no')")
    assert code(half, problem(PAIRS)) == Score(0.0, False, "wrong", detail="test 2 of 3: another output")
    partial = Code(partial=True)
    assert partial(half, problem(PAIRS)) == Score(2 / 3, False, "wrong", detail="test 2 of 3: another output")
    assert partial(fenced(SUM), problem(PAIRS)) == Score(1.0, True, "ok")
    assert partial("none", problem(PAIRS)).status == code("none", problem(PAIRS)).status == "unparsed"


def test_the_whole_has_a_limit_and_never_fails_for_want_of_time(sandbox: Sandbox) -> None:
    """What is left for the last test is too short for a sandbox to start: that is the program's fault."""
    score = Code(partial=True, time_limit=1.0, total_limit=1.02)(
        fenced("import time\nif input(): time.sleep(1e6)"), problem([{"input": "1", "output": ""}] * 4)
    )
    assert (score.value, score.status) == (0.0, "wrong")


class Deaf(Sandbox):
    def run(self, *_: Any) -> tuple[bytes, str]:
        raise RuntimeError("did not start")


def test_a_sandbox_that_fails_is_an_error_unless_time_was_short(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = Code(time_limit=1.0)
    monkeypatch.setattr(reward, "_sandbox", Deaf())
    with pytest.raises(RuntimeError):
        reward(fenced("x"), problem(PAIRS))
    monkeypatch.setattr(reward, "_total", 0.9)
    assert reward(fenced("x"), problem(PAIRS)).detail == "test 1 of 3: the time for all tests is over"


def test_tests_come_from_the_field_or_the_answer() -> None:
    assert read_tests(Problem("p", "t", "", PAIRS, "k")) == read_tests(problem(PAIRS))
    assert read_tests(problem([{"input": 7, "output": [1]}]))[0] == Case("script", "7", "[1]")
    assert read_tests(problem([{"fn_name": "f", "args": [], "expected": (1, {2: 3})}]))[0].expected == [1, {"2": 3}]


@pytest.mark.parametrize(
    "tests",
    [None, [], "x", {}, [{}], [{"input": ""}], [{"fn_name": "f", "args": 3, "expected": 1}], [*PAIRS, None],
     [{"fn_name": 1, "args": [], "expected": 1}], [{"fn_name": "f", "expected": 1}]],
)  # fmt: skip
def test_a_problem_without_tests_is_refused(tests: Any) -> None:
    with pytest.raises(BadInput, match=r"problem 'p'.*`code`.*fn_name"):
        read_tests(problem(tests))


def test_limits_must_make_sense(sandbox: Sandbox) -> None:
    for arguments in ({"time_limit": -1}, {"memory_mb": -1}, {"processes": 0.0}, {"total_limit": -2}):
        with pytest.raises(BadInput, match="above 0"):
            Code(**arguments)
    assert Code(time_limit=3).item_limit == 7


class Trap:
    """What hostile programs aim at: a secret, a server that tells it, a directory to spoil."""

    def __init__(self, directory: Path, server: socket.socket) -> None:
        self.outside, self.server = directory, server
        self.secret = f"secret-{secrets.token_hex(16)}"
        (directory / "secret.txt").write_text(self.secret)
        os.environ["PONDER_TEST_SECRET"] = self.secret
        self.told = 0
        threading.Thread(target=self._tell, daemon=True).start()

    def _tell(self) -> None:
        while True:
            try:
                peer, _ = self.server.accept()
            except OSError:
                return
            self.told += 1
            peer.sendall(self.secret.encode())
            peer.close()

    def fill(self, program: str) -> str:
        words = {
            "find": FIND,
            "secret_file": self.outside / "secret.txt",
            "outside": self.outside,
            "parent": os.getpid(),
        }
        for name, word in (words | {"port": self.server.getsockname()[1]}).items():
            program = program.replace(f"{{{name}}}", str(word))
        return program

    def unharmed(self) -> bool:
        canaries = [Path(place).expanduser() / name for place in (".", "~", "/", "/tmp", "/var/tmp", "/dev/shm")
                    for name in ("canary", "ponder-canary")]  # fmt: skip
        return os.listdir(self.outside) == ["secret.txt"] and not self.told and not any(c.exists() for c in canaries)


@pytest.fixture(scope="module")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trap]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield Trap(tmp_path_factory.mktemp("outside"), server)
    del os.environ["PONDER_TEST_SECRET"]


def check(trap: Trap, program: str, tests: Any, seconds: float) -> None:
    reward = Code(time_limit=seconds)
    start = time.monotonic()
    score = reward(fenced(trap.fill(program)), problem(tests, secret=trap.secret))
    assert time.monotonic() - start < 2 * seconds + 1
    assert (score.value, score.correct, score.status) == (0.0, False, "wrong")
    assert trap.secret not in score.detail
    assert trap.unharmed()


def secret_tests(trap: Trap) -> list[dict[str, str]]:
    return [{"input": "1\n", "output": trap.secret}]


@pytest.mark.usefixtures("nothing_left")
class TestHostile:
    @pytest.mark.parametrize("name", HOSTILE["Stealing"])
    def test_programs_that_steal(self, trap: Trap, name: str) -> None:
        check(trap, HOSTILE["Stealing"][name], secret_tests(trap), 4.0)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", HOSTILE["Cheating"])
    def test_programs_that_cheat(self, trap: Trap, name: str) -> None:
        check(trap, HOSTILE["Cheating"][name], secret_tests(trap), 4.0)

    @pytest.mark.parametrize("name", HOSTILE["Lying"])
    def test_functions_that_lie(self, trap: Trap, name: str) -> None:
        check(trap, HOSTILE["Lying"][name], [{"fn_name": "f", "args": [1], "expected": trap.secret}], 4.0)

    @pytest.mark.parametrize("name", list(HOSTILE["Hanging"])[:2])
    def test_programs_that_hang(self, trap: Trap, name: str) -> None:
        check(trap, HOSTILE["Hanging"][name], secret_tests(trap), 1.5)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", list(HOSTILE["Hanging"])[2:])
    def test_more_programs_that_hang(self, trap: Trap, name: str) -> None:
        check(trap, HOSTILE["Hanging"][name], secret_tests(trap), 1.5)

    def test_the_trap_can_be_sprung(self, trap: Trap) -> None:
        """Without a sandbox the same programs do find the secret: it is where they look."""
        bare = Sandbox()
        for name in ("a file", "a server of this machine", "libc", "__import__"):
            output, _ = bare.run(trap.fill(HOSTILE["Stealing"][name]), "", Limits(10), 1000)
            assert trap.secret.encode() in output, name
        trap.told = 0
