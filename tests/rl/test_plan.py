"""`ponder train CONFIG --dry-run`: the plan of a machine that is not here, and what a start there is refused for."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from rl.backend import server_spec
from rl.build import examine
from rl.cli import app
from rl.config import load_config
from rl.exits import run_command
from rl.launch import ByteCount
from rollout.prompt import Template
from rollout.server.hardware import probe, stated_hardware
from tests.models import byte_tokenizer

ROOT = Path(__file__).parents[2]
SHARED = "configs/gpu-24gb.yaml"


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, the table as one line, stderr."""
    code = run_command(lambda: app(["train", *arguments], standalone_mode=False))
    out, err = capsys.readouterr()
    return code, " ".join(out.replace("│", " ").split()), err


def test_the_card_of_24_gb_is_planned_without_a_gpu_weights_or_a_tokenizer(capsys: Any, tmp_path: Path) -> None:
    code, out, err = plan(capsys, SHARED, f"run.dir={tmp_path}", "--dry-run")
    assert (code, err) == (0, "")
    assert "estimates" in out
    assert "1,543,714,304" in out
    assert "25.770 GB of 25.770 GB" in out
    for item in ("gradients", "AdamW", "activations", "logits", "KV cache", "server: weights", "CUDA context"):
        assert item in out, item
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("hardware.gpu_memory_gb=1", "GPU 0 has 1.1 GB"),
        ("model.lora=null", "model.lora={rank: 16}"),
        ("rollout.colocate=false", "rollout.colocate=true"),
        ("sync.backend=nccl", "no rollout.colocate"),
        ("hardware.nodes=2", "hardware.nodes=2: one machine"),
        ("rollout.servers=['http://x']", "neither beside rollout.servers"),
        ("rollout.max_tokens=40000", "a context of 32768"),
        ("model.path=someone/Huge-1T", "Huge-1T/config.json"),
        ("model.lora.targets=[lm_head]", "lm_head is no linear layer"),
    ],
)
def test_what_cannot_be_is_exit_2_and_one_line(capsys: Any, override: str, words: str) -> None:
    code, _, err = plan(capsys, SHARED, override, "--dry-run")
    assert code == 2
    assert err.count("\n") == 1
    assert words in err


APART = ("rollout.colocate=false", "hardware.gpus=2", "sync.backend=nccl", "--dry-run")


def test_the_plan_names_the_push(capsys: Any, tmp_path: Path) -> None:
    code, out, _ = plan(capsys, SHARED, f"run.dir={tmp_path}", *APART)
    assert code == 0
    assert "sync.backend=nccl" in out
    assert "weights on their way" in out
    assert "host memory" not in out


def test_nccl_without_cuda_is_exit_2_and_one_line(capsys: Any) -> None:
    code, _, err = plan(capsys, SHARED, *APART, "hardware={gpus: 0}", "rollout.gpus=[]")
    assert (code, err.count("\n")) == (2, 1)
    assert "sync.backend=nccl needs CUDA, and there is no GPU that can be used here; use sync.backend=file" in err


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "hardware.gpus=1 is stated and 0 can be used here"),
        (["hardware={}"], "model.path=Qwen/Qwen2.5-1.5B-Instruct: no such directory"),
    ],
)
def test_a_start_here_is_refused_before_anything_is_made(
    capsys: Any, tmp_path: Path, overrides: list[str], words: str
) -> None:
    code, _, err = plan(capsys, SHARED, f"run.dir={tmp_path}", *overrides)
    assert code == 2
    assert err.count("\n") == 1
    assert words in err
    assert list(tmp_path.iterdir()) == []


def test_the_server_of_the_shared_card_is_the_golden_one() -> None:
    config = load_config(ROOT / SHARED, ["server.port=8000", "server.kv_cache_gb=0.5"])
    hardware = stated_hardware(probe(), config.hardware.gpus, config.hardware.gpu_memory_gb)
    setup = examine(config, hardware, ByteCount(""))  # type: ignore[arg-type]
    spec = server_spec(setup, Path("/dev/shm/ponder-run"))
    golden = json.loads((ROOT / "tests/golden/server_gpu_24gb.json").read_text())
    assert json.loads(json.dumps(asdict(spec))) == golden["spec"]


def test_bytes_are_an_upper_bound_of_tokens() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}<|assistant|>"
    template = Template(tokenizer, think=True, system_prompt="Think.", stop_ids=[258])
    for prompt in ("2 13 10 : 5", "café", [{"role": "user", "content": "naïve?"}]):
        assert len(ByteCount("Think.").encode(prompt)) >= len(template.encode(prompt))
