"""Checkpoints: a directory that plain transformers and vLLM load, plus the trainer's state; atomic and checksummed.
What lies where in it, and why: docs/decisions/run-directory.md."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from rewards.errors import BadInput
from rl.exits import DISK_FULL
from rl.rundir import sync, write_json

STATE = Path("trainer", "state.safetensors")
Tensors = dict[str, Any]  # torch loads with the first of them


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    step: int

    def note(self, name: str) -> str:
        """One of the `notes` that it was saved with. Raises BadInput where it is of another revision."""
        with safe_open(self.path / STATE, framework="pt") as file:
            notes = json.loads((file.metadata() or {}).get("notes", "{}"))
            if name not in notes:
                raise BadInput(f"checkpoint {self.path} holds no {name}: it is of another revision; begin a new run")
            return str(notes[name])

    def learner_state(self) -> Tensors:
        """What `Learner.state_dict` gave, on the CPU."""
        from safetensors.torch import load_file

        return load_file(self.path / STATE)


def save_checkpoint(
    root: Path, step: int, save_model: Callable[[Path], None], learner_state: Tensors, notes: dict[str, str], keep: int
) -> None:
    """Write step-N below `root`, and prune older ones down to `keep`; BadInput and no change where the disk is full."""
    final, draft = root / f"step-{step}", root / f".step-{step}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        save_model(draft)
        _write_state(draft, learner_state, notes)
        _write_manifest(draft, step)
        for path in (*draft.rglob("*"), draft):  # else a crash could leave a complete name over empty files
            sync(path)
        shutil.rmtree(final, ignore_errors=True)
        draft.replace(final)
        sync(root)
    except Exception as error:
        shutil.rmtree(draft, ignore_errors=True)
        # safetensors' writer has an exception of its own for a full disk, which only tells in words
        if getattr(error, "errno", None) in DISK_FULL or any(f"(os error {n})" in str(error) for n in DISK_FULL):
            raise BadInput(
                f"no space left for checkpoint {final}; free some disk and go on with --resume (nothing older is lost)"
            ) from None
        raise
    _prune(root, keep)


def latest_checkpoint(root: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint whose files match their checksums; a damaged one is named and the one before is tried."""
    for step, path in sorted(_steps(root), reverse=True):
        fault = find_damage(path)
        if fault is None:
            return Checkpoint(path, step)
        warn(f"checkpoint {path} is damaged ({fault}); trying the one before")
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


def remove_after(root: Path, step: int) -> None:
    """Remove what a killed save left, and checkpoints past `step`: damaged ones that a resume went back behind."""
    for path in (*root.glob(".step-*.draft"), *(path for found, path in _steps(root) if found > step)):
        shutil.rmtree(path, ignore_errors=True)


def _steps(root: Path) -> list[tuple[int, Path]]:
    return [(int(p.name[5:]), p) for p in root.glob("step-*") if p.name[5:].isdigit()]


def _prune(root: Path, keep: int) -> None:
    for _, path in sorted(_steps(root), reverse=True)[keep:]:
        shutil.rmtree(path, ignore_errors=True)


def _write_state(directory: Path, learner_state: Tensors, notes: dict[str, str]) -> None:
    from safetensors.torch import save_file

    (directory / STATE).parent.mkdir()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in learner_state.items()}
    save_file(
        tensors, directory / STATE, metadata={"notes": json.dumps(notes)}
    )  # one, since the order of several would be random


def _write_manifest(directory: Path, step: int) -> None:
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    entries = {str(p.relative_to(directory)): {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in files}
    write_json(directory / "manifest.json", {"step": step, "files": entries})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
