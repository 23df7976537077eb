"""One tiny model and one real vLLM server for the whole session; both are made only when a test asks."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

from rollout.server.argv import SPIN_COUNT, SPIN_VARIABLE, ServerSpec
from rollout.server.hardware import probe
from rollout.server.process import ServerProcess, free_port
from tests.models import tiny_model

os.environ.setdefault(SPIN_VARIABLE, SPIN_COUNT)  # before any test loads torch
# Machines are shared: no test is timed. And one commit's tests say the same each time.
hypothesis.settings.register_profile("ponder", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ponder")


@dataclass(frozen=True)
class VllmServer:
    """What a test needs of the session's server."""

    url: str
    key: str
    model_path: Path
    sync_dir: Path
    process: ServerProcess


POISON = {
    "temperature": 0.01,
    "top_k": 1,
    "top_p": 0.1,
    "repetition_penalty": 3.0,
    "eos_token_id": 7,
    "do_sample": False,
}
"""A generation_config.json that would spoil every sample, if a server or a sampler took its defaults from it."""


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a random two-layer Llama with a byte-level tokenizer, context 1024, and POISON as its defaults."""
    path = tiny_model(tmp_path_factory.mktemp("models") / "llama")
    (path / "generation_config.json").write_text(json.dumps(POISON))
    return path


@pytest.fixture(scope="session")
def vllm_server(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """The session's vLLM server on `tiny_llama`, with weight sync. Who pushes weights pushes the old ones back."""
    key = secrets.token_hex(16)
    sync_dir = Path("/dev/shm") / f"ponder-test-{secrets.token_hex(4)}"  # made, and removed, with the server
    spec = vllm_spec(tiny_llama, sync_dir)
    log = tmp_path_factory.mktemp("server") / "server.log"
    process = asyncio.run(
        ServerProcess.start(spec, log=log, key=key, hardware=probe(), owned_dirs=[sync_dir], timeout=300)
    )
    try:
        yield VllmServer(process.url, key, tiny_llama, sync_dir, process)
    finally:
        asyncio.run(process.stop())


def vllm_spec(model: Path, sync_dir: Path | None) -> ServerSpec:
    """A server small enough for a test machine, on a free port."""
    return ServerSpec(
        model=str(model),
        dtype="float32",
        max_model_len=1024,
        seed=0,
        port=free_port(),
        sync_dir=None if sync_dir is None else str(sync_dir),
        load_format="auto",
        kv_cache_gb=0.5,
        gpu_memory_utilization=0.3,
        eager=True,
        threads=None,
        max_num_seqs=64,
    )
