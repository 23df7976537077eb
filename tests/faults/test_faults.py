"""The planted faults do what they say: else a test that looks for one would pass on a healthy system."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

STALE_HEAD = """
import rollout.server.weights_plugin as plugin
print(plugin.refresh_heads.__name__)
"""
STALE_PREFIX_CACHE = """
import asyncio, httpx
from rollout.client import ServerControl
async def main():
    answer = lambda request: print(request.url.params["clear_cache"]) or httpx.Response(200)
    await ServerControl("http://server", "key", transport=httpx.MockTransport(answer)).pause()
asyncio.run(main())
"""
RAW_LOGPROBS = """
from pathlib import Path
from rollout.server.argv import ServerSpec, server_argv
from rollout.server.hardware import probe
from tests.conftest import vllm_spec
print("raw_logprobs" in server_argv(vllm_spec(Path("model"), None), probe())[0])
"""
WRONG_STOP_ID = """
from rollout.client import request_body
from rollout.sampling import SamplingParams
print(request_body([1], SamplingParams(max_tokens=1, stop_ids=(5, 9), seed=0))["sampling_params"]["stop_token_ids"])
"""


@pytest.mark.parametrize(
    ("fault", "script", "planted", "healthy"),
    [
        pytest.param("stale_head", STALE_HEAD, "<lambda>", "refresh_heads", marks=pytest.mark.slow),  # imports vllm
        ("stale_prefix_cache", STALE_PREFIX_CACHE, "false", "true"),
        ("raw_logprobs", RAW_LOGPROBS, "True", "False"),
        ("wrong_stop_id", WRONG_STOP_ID, "[4, 8]", "[5, 9]"),
    ],
)
def test_fault_is_planted_only_where_it_is_asked_for(fault: str, script: str, planted: str, healthy: str) -> None:
    root = str(HERE.parents[1])
    for path, expected in ((f"{HERE / fault}:{root}", planted), (root, healthy)):
        env = os.environ | {"PYTHONPATH": path}
        result = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
        assert result.stdout.split("\n")[-2:-1] == [expected], result.stderr
