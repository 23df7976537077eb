"""The push through a file: what is written, sent and refused, and what is left behind when something breaks."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from rewards.errors import BadInput, Fault
from rl import sync
from rl.sync import FilePush, Manifest, ModuleSource, hf_name, write_safetensors
from tests.rl.wire import SOURCE, Control, Source


@pytest.mark.parametrize(("dtype", "needed"), [(torch.float32, 36), (torch.bfloat16, 18), (torch.float16, 18)])
async def test_a_full_directory_is_refused_before_the_servers_hear_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, needed: int
) -> None:
    monkeypatch.setattr(sync.shutil, "disk_usage", lambda _: type("Usage", (), {"free": needed - 1}))
    source = Source({name: tensor.to(dtype) for name, tensor in SOURCE.weights.items()})
    log: list[str] = []
    with pytest.raises(BadInput, match=f"has {needed - 1} bytes free, the weights need {needed}"):
        await FilePush([Control(log)], tmp_path).push(source, 1)
    assert log == []


async def test_a_disk_that_fills_up_while_writing_is_bad_input_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sync, "write_safetensors", full)
    log: list[str] = []
    with pytest.raises(BadInput, match="No space left on device"):
        await FilePush([Control(log)], tmp_path).push(SOURCE, 1)
    assert log[-1] == "s /resume"
    assert list(tmp_path.iterdir()) == []


async def test_a_missing_directory_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"sync\.dir=.*No such file"):
        await FilePush([Control([])], tmp_path / "none").push(SOURCE, 1)


async def test_files_of_dead_pushes_go_and_those_in_use_stay(tmp_path: Path) -> None:
    dead, busy, foreign = (tmp_path / name for name in ("ponder-1-v1.safetensors", "ponder-2-v1.safetensors", "x"))
    for path in (dead, busy, foreign):
        path.write_bytes(b"0")
    with busy.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        await FilePush([Control([])], tmp_path).push(SOURCE, 1)
        assert sorted(tmp_path.iterdir()) == sorted([busy, foreign])


KILLED_IN_THE_PUSH = """
import os, signal, sys
from pathlib import Path
from rl.sync import weights_file
from tests.rl.wire import SOURCE
with weights_file(Path(sys.argv[1]), SOURCE, 3):
    os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_kill_9_in_a_push_leaves_a_file_that_the_next_push_removes(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    env = os.environ | {"PYTHONPATH": root}
    killed = subprocess.run([sys.executable, "-c", KILLED_IN_THE_PUSH, str(tmp_path)], env=env, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name.split("-v")[1] for path in tmp_path.iterdir()] == ["3.safetensors"]
    await FilePush([Control([])], tmp_path).push(SOURCE, 4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_written_file_is_safetensors(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = {
        "matrix": torch.randn(3, 5, dtype=dtype),
        "strided": torch.randn(4, 6, dtype=dtype).t(),
        "scalar": torch.tensor(2.5, dtype=dtype),
        "vector": torch.randn(7, dtype=dtype),
    }
    source = Source(weights)
    path = tmp_path / "w.safetensors"
    with path.open("wb") as file:
        write_safetensors(file, source)
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(weights)
    loaded = load_file(path)
    assert all(torch.equal(loaded[name], tensor) and loaded[name].dtype == dtype for name, tensor in weights.items())


def test_a_stream_that_differs_from_its_manifest_is_a_fault(tmp_path: Path) -> None:
    class Lies(Source):
        def manifest(self) -> Manifest:
            return [("b.weight", "float32", (3, 2)), ("a.bias", "float32", (3,))]

    with (tmp_path / "w").open("wb") as file, pytest.raises(Fault, match=r"manifest says b\.weight"):
        write_safetensors(file, Lies(SOURCE.weights))


def test_module_source_sends_checkpoint_names_in_the_served_dtype() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2, bias=False))
    compiled: Any = torch.compile(model)  # its parameters are called _orig_mod.…
    source = ModuleSource(compiled, "bfloat16")
    names = [name for name, _ in model.named_parameters()]
    assert source.manifest() == [
        ("0.weight", "bfloat16", (3, 2)), ("0.bias", "bfloat16", (3,)), ("1.weight", "bfloat16", (2, 3)),
    ]  # fmt: skip
    sent = list(source.tensors())
    assert [name for name, _ in sent] == names
    assert all(tensor.dtype == torch.bfloat16 and not tensor.requires_grad for _, tensor in sent)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_is_sent_unless_it_is_the_embedding(tied: bool) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=8, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1,
                         num_key_value_heads=1, tie_word_embeddings=tied)  # fmt: skip
    names = [name for name, _, _ in ModuleSource(LlamaForCausalLM(config)).manifest()]
    assert ("lm_head.weight" in names) is not tied
    assert "model.embed_tokens.weight" in names


@pytest.mark.parametrize(
    "wrapped",
    ["module.model.layers.0.x", "_orig_mod.module.model.layers.0.x", "model.layers.0._checkpoint_wrapped_module.x"],
)
def test_wrappers_leave_the_name(wrapped: str) -> None:
    assert hf_name(wrapped) == "model.layers.0.x"
    assert hf_name("model.submodule.x") == "model.submodule.x"
