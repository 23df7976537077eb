"""Checkpoints: whole or not at all, damage is found and named, exact round trip."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from rewards.errors import BadInput
from rl.checkpoint import find_damage, latest_checkpoint, remove_after, save_checkpoint

STATE = {"optimizer.exp_avg.w": torch.arange(4.0), "optimizer.step.w": torch.tensor(2.0), "counters": torch.tensor(3)}


def write_model(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"weights" * 100)


def save(root: Path, step: int, keep: int = 3) -> Path:
    save_checkpoint(root, step, write_model, STATE, {"fingerprint": "of the task"}, keep)
    return root / f"step-{step}"


def test_state_comes_back_exactly(tmp_path) -> None:
    save(tmp_path, 3)
    found = latest_checkpoint(tmp_path, print)
    assert found is not None
    assert found.step == 3
    assert found.note("fingerprint") == "of the task"
    state = found.learner_state()
    assert state.keys() == STATE.keys()
    assert all(tensor.equal(STATE[name]) and tensor.dtype == STATE[name].dtype for name, tensor in state.items())


def test_newest_wins_and_old_ones_are_pruned(tmp_path) -> None:
    for step in (2, 4, 10):
        save(tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-10", "step-4"]
    found = latest_checkpoint(tmp_path, print)
    assert found is not None
    assert found.step == 10  # by number, not by name


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: flip(d / "model.safetensors"), "model.safetensors does not match"),
        (lambda d: (d / "trainer/state.safetensors").write_bytes(b"x"), "trainer/state.safetensors has 1 bytes"),
        (lambda d: (d / "trainer/state.safetensors").unlink(), "trainer/state.safetensors is missing"),
        (lambda d: (d / "manifest.json").write_text("{"), "manifest.json"),
    ],
)
def test_damage_is_named_and_the_one_before_is_used(tmp_path, damage, words: str) -> None:
    save(tmp_path, 1)
    damage(save(tmp_path, 2))
    said: list[str] = []
    found = latest_checkpoint(tmp_path, said.append)
    assert found is not None
    assert found.step == 1
    assert words in said[0]
    assert str(tmp_path / "step-2") in said[0]


def test_nothing_usable_is_none(tmp_path) -> None:
    assert latest_checkpoint(tmp_path, print) is None
    flip(save(tmp_path, 1) / "model.safetensors")
    assert latest_checkpoint(tmp_path, lambda _: None) is None


def test_a_full_disk_is_bad_input_and_loses_nothing(tmp_path) -> None:
    save(tmp_path, 1)

    def full(directory: Path) -> None:
        (directory / "model.safetensors").write_bytes(b"part")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(BadInput, match="no space left"):
        save_checkpoint(tmp_path, 2, full, STATE, {"fingerprint": ""}, keep=2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]
    assert find_damage(tmp_path / "step-1") is None


def test_a_killed_save_leaves_only_a_draft_that_is_cleaned(tmp_path) -> None:
    def die(directory: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 5, die, STATE, {"fingerprint": ""}, keep=2)
    assert latest_checkpoint(tmp_path, print) is None
    remove_after(tmp_path, 5)
    assert list(tmp_path.iterdir()) == []


def test_going_back_removes_what_came_after(tmp_path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    remove_after(tmp_path, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]
