"""What `ponder eval` evaluates: a model directory, a run's newest checkpoint or a server, and what samples from it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from rewards.errors import BadInput
from rl.build import model_context
from rl.checkpoint import latest_checkpoint
from rl.rundir import RunDir, open_run
from rollout.client import VllmClient
from rollout.server.argv import ServerSpec
from rollout.server.hardware import probe
from rollout.server.middleware import KEY_VARIABLE
from rollout.server.process import ServerProcess, free_port
from rollout.types import Sampler


@dataclass(frozen=True)
class Target:
    """What is evaluated: a directory with config and tokenizer, and where its weights are."""

    name: str  # of the cells; a server's URL
    path: str
    think: bool
    sampler: str  # vllm, transformers, or server: it has the model already

    @property
    def exact(self) -> bool:
        """Whether asking the same at once gives the same bits."""
        return self.sampler == "transformers"

    def fingerprint(self) -> str:
        """What tells this model from another at the same place; a server's weights can't be told, only its address."""
        if self.sampler == "server":
            return self.name
        digest = hashlib.sha256()
        for file in sorted(Path(self.path).iterdir()):
            if file.suffix in (".safetensors", ".bin", ".gguf") or file.name == "config.json":
                with file.open("rb") as opened:
                    digest.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
        return digest.hexdigest()[:16]


def resolve_target(text: str, sampler: str, think: bool, tokenizer: Path | None) -> Target:
    """A URL, a run directory (its newest checkpoint) or a model directory. Raises BadInput."""
    if text.startswith(("http://", "https://")):
        return Target(text, str(tokenizer or _served_model(text)), think, "server")
    if RunDir(Path(text)).config.is_file():
        run, config = open_run(Path(text))
        found = latest_checkpoint(run.checkpoints, lambda line: print(f"ponder: {line}", file=sys.stderr))
        if found is None:
            raise BadInput(f"{text} is a run without a checkpoint; let it reach train.checkpoint_every steps")
        return Target(f"{text}@{found.step}", str(found.path), config.model.think and think, sampler)
    model_context(text)
    return Target(text, text, think, sampler)


@contextlib.asynccontextmanager
async def open_sampler(target: Target, context: int, seed: int) -> AsyncIterator[Sampler]:
    """What samples from the target, with room for `context` tokens; a server that it takes ends with the block."""
    async with contextlib.AsyncExitStack() as stack:
        if target.sampler == "server":
            sampler: Sampler = VllmClient([target.name], _key(), context=context)
        elif target.exact:
            from rl.model import load_policy
            from rollout.transformers_sampler import TransformersSampler

            model, _ = load_policy(target.path, "float32", seed, attention="sdpa")
            sampler = TransformersSampler(model, context=context, pad_id=0)
        else:
            from rl.model import has_weights, load_policy, save_model

            scratch, path = Path(tempfile.mkdtemp(prefix="ponder-eval-")), target.path  # removed with the server
            if not has_weights(path):
                path = str(scratch / "model")
                save_model(load_policy(target.path, "float32", seed)[0], target.path, path)
            spec = ServerSpec(
                model=path, dtype="float32", max_model_len=context, seed=seed, port=free_port(), sync_dir=None,
                load_format="auto", kv_cache_gb=1.0, gpu_memory_utilization=0.9, eager=True, threads=None,
            )  # fmt: skip
            key, log = secrets.token_urlsafe(24), scratch / "server.log"
            print("ponder: starting vLLM", file=sys.stderr)
            server = await ServerProcess.start(spec, log=log, key=key, hardware=probe(), owned_dirs=(scratch,))
            stack.push_async_callback(server.stop)
            sampler = VllmClient([server.url], key, context=context)
        stack.push_async_callback(sampler.aclose)
        yield sampler


def _served_model(url: str) -> str:
    """The model directory that a vLLM server names as its root."""
    try:
        answer = httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {_key()}"}, trust_env=False)
        return str(answer.raise_for_status().json()["data"][0]["root"])
    except (httpx.HTTPError, KeyError, ValueError) as error:
        raise BadInput(f"{url} does not tell which model it serves ({error}); give --tokenizer DIRECTORY") from None


def _key() -> str:
    key = os.environ.get(KEY_VARIABLE, "")
    if not key:
        raise BadInput(f"a server's URL needs its key in the environment variable {KEY_VARIABLE}")
    return key
