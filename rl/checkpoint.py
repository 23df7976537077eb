"""Checkpoints: a directory that plain transformers and vLLM load, plus the trainer's state; atomic and checksummed.

checkpoints/step-N/   config.json, model.safetensors, tokenizer files   the policy
                      trainer/state.safetensors, trainer/state.json     optimizer tensors and everything else
                      manifest.json                                     sha256 and size of each file, written last

trainer/ is a directory of its own since vLLM loads every *.safetensors that it finds beside config.json.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.errors import BadInput
from rl.rundir import write_json

State = dict[str, Any]
"""A tree of dicts, lists, numbers, strings and tensors; dict keys may be ints (the optimizer's)."""


STATE = "trainer"
"""Directory of the trainer's own state in a checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """One verified checkpoint."""

    path: Path
    step: int

    def read_state(self) -> State:
        """The trainer's state as it was saved, tensors on the CPU."""
        from safetensors.torch import load_file

        directory = self.path / STATE
        tensors = load_file(directory / "state.safetensors")
        state: State = _join(json.loads((directory / "state.json").read_text()), tensors)
        return state


def save_checkpoint(root: Path, step: int, save_model: Callable[[Path], None], state: State, keep: int) -> Path:
    """Write step-N below `root`: all of it or nothing, and prune older ones down to `keep`.

    Raises BadInput where the disk is full; what was there before is untouched.
    """
    final, draft = root / f"step-{step}", root / f".step-{step}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        save_model(draft)
        _write_state(draft, state)
        _write_manifest(draft, step)
        _sync_tree(draft)
        shutil.rmtree(final, ignore_errors=True)
        draft.replace(final)
        _sync(root)
    except Exception as error:
        shutil.rmtree(draft, ignore_errors=True)
        if _no_space(error):
            raise BadInput(
                f"no space left for checkpoint {final}; free some disk and go on with --resume (nothing older is lost)"
            ) from None
        raise
    _prune(root, keep)
    return final


def _no_space(error: Exception) -> bool:
    """Whether the disk is full. safetensors' writer has an exception of its own for it, which only tells in words."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in full or any(f"(os error {number})" in str(error) for number in full)


def latest_checkpoint(root: Path, warn: Callable[[str], None], before: int | None = None) -> Checkpoint | None:
    """The newest checkpoint whose files match their checksums; a damaged one is named and the one before is tried."""
    for step, path in sorted(_steps(root), reverse=True):
        if before is not None and step > before:
            continue
        if fault := find_damage(path):
            warn(f"checkpoint {path} is damaged ({fault}); trying the one before")
            continue
        return Checkpoint(path, step)
    return None


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, in words; None where nothing is."""
    try:
        files = json.loads((path / "manifest.json").read_text())["files"]
    except (OSError, ValueError, KeyError):
        return "manifest.json is missing or broken"
    for name, entry in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != entry["bytes"]:
            return f"{name} has {file.stat().st_size} bytes instead of {entry['bytes']}"
        if _sha256(file) != entry["sha256"]:
            return f"{name} does not match its checksum"
    return None


def clean_drafts(root: Path) -> None:
    """Remove what a killed save left."""
    for draft in root.glob(".step-*.draft"):
        shutil.rmtree(draft, ignore_errors=True)


def remove_after(root: Path, step: int) -> None:
    """Remove checkpoints past `step`: damaged ones that a resume went back behind."""
    for found, path in _steps(root):
        if found > step:
            shutil.rmtree(path, ignore_errors=True)


def _steps(root: Path) -> list[tuple[int, Path]]:
    found = [(p.name.removeprefix("step-"), p) for p in root.glob("step-*")]
    return [(int(n), p) for n, p in found if n.isdigit()]


def _prune(root: Path, keep: int) -> None:
    for _, path in sorted(_steps(root), reverse=True)[keep:]:
        shutil.rmtree(path, ignore_errors=True)


def _write_state(directory: Path, state: State) -> None:
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {}
    tree = _split(state, tensors)
    (directory / STATE).mkdir()
    save_file(tensors, directory / STATE / "state.safetensors")
    (directory / STATE / "state.json").write_text(json.dumps(tree))


def _split(node: Any, tensors: dict[str, Any]) -> Any:
    """`node` as JSON, its tensors moved to `tensors`; dicts become pairs since JSON keys are strings only."""
    import torch

    if isinstance(node, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = node.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(node, dict):
        return {"dict": [[key, _split(value, tensors)] for key, value in node.items()]}
    if isinstance(node, (list, tuple)):
        return [_split(value, tensors) for value in node]
    return node


def _join(node: Any, tensors: dict[str, Any]) -> Any:
    if isinstance(node, dict):
        if "tensor" in node:
            return tensors[node["tensor"]]
        return {key: _join(value, tensors) for key, value in node["dict"]}
    if isinstance(node, list):
        return [_join(value, tensors) for value in node]
    return node


def _write_manifest(directory: Path, step: int) -> None:
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    entries = {str(p.relative_to(directory)): {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in files}
    write_json(directory / "manifest.json", {"step": step, "files": entries})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_tree(directory: Path) -> None:
    """Bytes on disk before the rename: else a crash could leave a complete name over empty files."""
    for path in (*directory.rglob("*"), directory):
        _sync(path)


def _sync(path: Path) -> None:
    """fsync a file or a directory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
