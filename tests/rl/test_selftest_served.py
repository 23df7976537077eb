"""The selftest on real vLLM: it passes on every shape, and names each fault of a server and of its client."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rl.config import Config, dump_config, override_config
from rl.sync import FilePush, WeightSource
from rollout.client import ServerControl
from rollout.server.middleware import KEY_VARIABLE
from tests.conftest import VllmServer
from tests.models import tiny_model
from tests.rl.test_selftest import make_config, selftest

FAULTS = Path(__file__).parents[1] / "faults"


@pytest.fixture
def served(vllm_server: VllmServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Config]:
    """A configuration that uses the session's server; prompts are long, since a server elsewhere keeps its context."""
    rows = [{"prompt": f"{i}: " + "go on " * 60, "answer": "a", "split": "train"} for i in range(2)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv(KEY_VARIABLE, vllm_server.key)
    remote = ["sampler=vllm", f"rollout.servers=['{vllm_server.url}']", f"sync.dir={vllm_server.sync_dir}"]
    yield override_config(make_config(vllm_server.model_path), [*remote, f"task={tmp_path}/rows.jsonl"])
    monkeypatch.undo()
    asyncio.run(drop_prefix_cache(vllm_server))


async def drop_prefix_cache(server: VllmServer) -> None:
    control = ServerControl(server.url, server.key)
    await control.pause()
    await control.resume()
    await control.aclose()


def push_nothing_new(monkeypatch: pytest.MonkeyPatch) -> None:
    push = FilePush.push

    async def only_the_first(self: FilePush, source: WeightSource, version: int) -> None:
        if version == 0:
            await push(self, source, version)

    monkeypatch.setattr(FilePush, "push", only_the_first)


@pytest.mark.vllm
def test_a_served_model_passes(capsys: pytest.CaptureFixture[str], tmp_path: Path, served: Config) -> None:
    code, report = selftest(capsys, served, tmp_path)
    assert code == 0, report["reasons"]


@pytest.mark.vllm
def test_a_push_that_does_not_arrive_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, served: Config
) -> None:
    push_nothing_new(monkeypatch)
    code, report = selftest(capsys, served, tmp_path)
    assert code == 1
    assert report["parity_before"] < 1e-5
    assert report["unpushed_seen"]
    assert re.match(r"after a push: \S+ off everywhere, and a push leaves .*do not arrive", report["reasons"][0])


def reasons_under(fault: str, config: Config, tmp_path: Path) -> list[str]:
    """What `ponder selftest` says, in a process of its own with a fault that comes with Python's start-up."""
    (tmp_path / "config.yaml").write_text(dump_config(config))
    command = [sys.executable, "-m", "rl.cli", "selftest", str(tmp_path / "config.yaml"), "--json"]
    env = os.environ | {"PYTHONPATH": str(FAULTS / fault)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 1, done.stderr
    return json.loads(done.stdout)["reasons"]


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("stale_prefix_cache", r"after a push: \S+ off on a long prompt that was sent before .*stale prefix cache"),
        ("wrong_stop_id", r"with stop ids \[258, \d+\] the sampler gave \d+ tokens"),
    ],
)
def test_a_fault_of_a_client_is_named(tmp_path: Path, served: Config, fault: str, words: str) -> None:
    reasons = reasons_under(fault, served, tmp_path)
    assert re.match(words, reasons[0]), reasons


def started(model: Path) -> Config:
    """A configuration that starts a server of its own."""
    return override_config(make_config(model), ["sampler=vllm", "server.kv_cache_gb=0.25"])


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "tied"), [("llama", True), ("qwen2", False), ("qwen3", True)])
def test_every_shape_passes(capsys: pytest.CaptureFixture[str], tmp_path: Path, arch: str, tied: bool) -> None:
    config = started(tiny_model(tmp_path / "model", arch=arch, tied=tied))
    code, report = selftest(capsys, config, tmp_path)
    assert code == 0, report["reasons"]
    assert report["parity_before"] < 1e-5
    assert report["parity_after"] < 1e-5
    assert report["mismatch"] < 1e-9
    assert report["ratio_max"] == pytest.approx(1, abs=1e-4)
    assert report["unpushed_seen"]
    assert report["stop_ids"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raw_logprobs", r"on the same weights: \S+ off at T = 0.7 and nothing at T = 1.0"),
        ("stale_head", r"on the same weights: \S+ off everywhere, .*a stale output head"),
    ],
)
def test_a_fault_of_a_server_is_named(tmp_path: Path, fault: str, words: str) -> None:
    reasons = reasons_under(fault, started(tiny_model(tmp_path / "model")), tmp_path)
    assert re.match(words, reasons[0]), reasons
