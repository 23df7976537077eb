"""Python programs, judged by running them: the last fenced block against tests, each in a fresh sandbox.
What is expected never enters the sandbox; what comes out is compared outside, as text or as JSON: an object that calls
itself equal to everything is no value at all. What this covers, and what not: docs/decisions/code-sandbox.md."""

import json
import re
import time
from dataclasses import dataclass, replace
from typing import Any

from rewards.answer import after_thinking, as_text
from rewards.errors import BadInput
from rewards.sandbox import Limits, find_sandbox
from rewards.types import Problem, Score

PYTHON = {"python", "py", "python3", "py3"}
MAX_PROGRAM = 2**20  # characters
OVER = "the time for all tests is over"
_FENCE = re.compile(r"([ \t]*+)(`{3,}+|~{3,}+)[ \t]*+([^`\s]*+)[^`]*+")


class Code:
    """The reward `code`, and a factory: `{use: code, args: {partial: true}}`.
    partial: the value is the share of tests passed, else the first failure ends it with 0; correct is only what passes
    all. `limits` are those of a test (rewards.sandbox.Limits); total_limit: seconds for all, twice as much by default.
    Raises BadInput where no sandbox works (tried, once), unless allow_unsandboxed."""

    def __init__(
        self, partial: bool = False, total_limit: float = 0, allow_unsandboxed: bool = False, **limits: Any
    ) -> None:
        self._partial, self._limits = partial, Limits(**limits)
        self._total = total_limit or 2 * self._limits.time_limit
        if min(self._total, *vars(self._limits).values()) <= 0:
            raise BadInput(f"code: every limit must be above 0: {limits | {'total_limit': total_limit}}")
        self.item_limit = self._total + 1.0  # the pool's clock for an item
        self._sandbox = find_sandbox(allow_unsandboxed)

    def __call__(self, response: str, problem: Problem) -> Score:
        """The verdict on a program. Raises BadInput for a problem without tests, RuntimeError where a sandbox fails."""
        cases, program = read_tests(problem), last_program(response)
        if program is None:
            return Score(0.0, False, "unparsed", detail="no closed block of Python")
        end, whole, faults = time.monotonic() + self._total, self._limits.time_limit, list[str]()
        for number, case in enumerate(cases, 1):
            left, output, fault = end - time.monotonic(), b"", OVER
            limits = replace(self._limits, time_limit=min(whole, left))
            most = 2**16 + 6 * len(as_text(case.expected))  # bytes, blanks aside; JSON may write a character as \u1234
            try:
                if left > 0:
                    output, fault = self._sandbox.run(program, case.stdin, limits, most, case.mode)
            except RuntimeError:
                if left >= whole:  # else it was the program that left too little time to start in
                    raise
            if fault := fault or ("" if case.accepts(output) else "another output"):
                faults.append(f"test {number} of {len(cases)}: {fault}")
                if not self._partial:
                    return Score(0.0, False, "wrong", detail=faults[0])
        passed = len(cases) - len(faults)
        return Score(passed / len(cases), not faults, "wrong" if faults else "ok", detail="".join(faults[:1]))


@dataclass(frozen=True)
class Case:
    """One test: `stdin` and `mode` as Sandbox.run takes them; `expected` stays in this process."""

    mode: str
    stdin: str
    expected: Any

    def accepts(self, output: bytes) -> bool:
        """Text line by line, without blanks at its lines' ends and empty lines at its end; a value as JSON data."""
        if self.mode == "script":
            texts = output.decode(errors="surrogateescape"), self.expected
            mine, gold = ("\n".join(map(str.rstrip, text.split("\n"))).rstrip("\n") for text in texts)
            return mine == gold
        try:
            return json.loads(output) == self.expected
        except (ValueError, RecursionError):
            return False


def read_tests(problem: Problem) -> list[Case]:
    """The problem's tests: its field `tests`, else its answer. Raises BadInput where that is no list of tests."""
    tests, cases = problem.meta.get("tests", problem.answer), list[Case]()
    for test in tests if isinstance(tests, list) else ():
        match test:
            case {"fn_name": str(name), "args": list() | dict() as args, "expected": value}:
                job = json.dumps({"fn_name": name, "args": args})
                cases.append(Case("call", job, json.loads(json.dumps(value))))
            case {"input": given, "output": output}:
                cases.append(Case("script", as_text(given), as_text(output)))
    if not cases or len(cases) < len(tests):
        form = "{input, output} or {fn_name, args: […], expected}"
        raise BadInput(f"problem {problem.id!r}: the reward `code` needs the field tests, a list of {form}")
    return cases


def last_program(response: str) -> str | None:
    """The last fenced block of Python after the thinking, or the last unmarked one where no block is marked at all.
    None where there is none, where it is empty or over a megabyte, or where a block of Python is never closed."""
    blocks, opened, body = list[tuple[str, str]](), None, list[str]()
    for line in (after_thinking(response) or "").split("\n"):
        bare = line.strip()
        if opened is None:
            opened, body = _FENCE.fullmatch(line.rstrip()), []
        elif bare.startswith(opened[2]) and not bare.strip(opened[2][0]):
            blocks.append((opened[3].lower(), re.sub(rf"(?m)^[ \t]{{0,{len(opened[1])}}}", "", "\n".join(body))))
            opened = None
        else:
            body.append(line)
    unmarked = not any(language for language, _ in blocks)
    programs = [text for language, text in blocks if language in PYTHON or unmarked]
    cut = opened is not None and opened[3].lower() in PYTHON
    return programs[-1] if programs and not cut and 0 < len(programs[-1].strip()) <= MAX_PROGRAM else None
