from __future__ import annotations

import os
import time
from collections.abc import Iterator

import psutil
import pytest

from rewards.errors import BadInput
from rewards.sandbox import RUNNER, Sandbox, find_sandbox


@pytest.fixture(scope="session")
def sandbox() -> Sandbox:
    """A sandbox that works; skips where there is none."""
    try:
        return find_sandbox()
    except BadInput as error:
        pytest.skip(str(error))


@pytest.fixture
def nothing_left(sandbox: Sandbox) -> Iterator[None]:
    """Afterwards no program runs on in the background."""
    yield
    deadline = time.monotonic() + 2
    while left := programs():
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.02)


def programs() -> list[int]:
    """Processes that run the sandbox's runner, or were forked from one."""
    found = []
    for process in psutil.process_iter():
        try:
            if RUNNER in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def user(sandbox: Sandbox) -> int:
    """The user id that a program has in the sandbox."""
    return int(sandbox.user.partition("UID=")[2]) if sandbox.user else os.getuid()
