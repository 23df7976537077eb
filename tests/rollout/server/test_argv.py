"""vLLM's command line and environment, pinned by golden files (rewrite: python -m tests.rollout.server.test_argv)."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from rollout.server.argv import ServerSpec, server_argv, server_env
from rollout.server.hardware import Gpu, Hardware

GOLDEN = Path(__file__).parents[2] / "golden"
CPU = Hardware(cores=2, memory_gb=24.0)
GPU = Hardware(cores=16, memory_gb=128.0, gpus=(Gpu("NVIDIA H100 80GB HBM3", 79.6),))
TINY = ServerSpec(
    model="configs/models/bytes-tiny",
    dtype="float32",
    max_model_len=1024,
    seed=0,
    port=8000,
    sync_dir="/dev/shm/ponder-run",
    load_format="dummy",
    kv_cache_gb=0.5,
    gpu_memory_utilization=0.9,
    eager=True,
    threads=None,
)
CARD = Hardware(cores=16, memory_gb=64.0, gpus=(Gpu("as stated", 24.0, "0"),))
SHARED = replace(
    TINY,
    model="Qwen/Qwen2.5-1.5B-Instruct",
    dtype="bfloat16",
    lora_rank=32,
    max_model_len=2136,
    gpu_memory_utilization=0.6,
    gpus=(0,),
    fp32_head=True,
)  # of configs/gpu-24gb.yaml: tests/rl/test_plan.py
CASES = {
    "server_cpu_tiny": (TINY, CPU),
    "server_cpu_compiled": (replace(TINY, load_format="auto", eager=False, threads=1, kv_cache_gb=2.0), CPU),
    "server_cpu_frozen": (replace(TINY, load_format="auto", sync_dir=None, max_num_seqs=64), CPU),
    "server_gpu_bf16": (replace(TINY, dtype="bfloat16", eager=False, fp32_head=True, gpu_memory_utilization=0.45), GPU),
    "server_gpu_24gb": (SHARED, CARD),
    "server_gpu_nccl": (replace(TINY, dtype="bfloat16", sync_dir=None, nccl=True), GPU),
}


def _golden(name: str) -> dict[str, Any]:
    spec, hardware = CASES[name]
    argv, env = server_argv(spec, hardware)
    golden: dict[str, Any] = json.loads(json.dumps({"spec": asdict(spec), "argv": argv, "env": env}))
    return golden


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    assert _golden(name) == json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_vllm_parses_the_command_line(name: str) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    module, *arguments = golden["argv"][1:]
    assert module == "vllm.entrypoints.openai.api_server"
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
    validate_parsed_serve_args(args)
    engine = AsyncEngineArgs.from_cli_args(args)
    spec = CASES[name][0]
    assert (args.host, args.port, args.enable_scale_out) == ("127.0.0.1", spec.port, True)
    assert (engine.model, engine.dtype, engine.max_model_len) == (spec.model, spec.dtype, spec.max_model_len)
    assert (engine.logprobs_mode, engine.generation_config) == ("processed_logprobs", "vllm")
    assert (engine.enforce_eager, engine.enable_prefix_caching) == (spec.eager, True)
    transfer = engine.weight_transfer_config and engine.weight_transfer_config.backend
    assert transfer == ("nccl" if spec.nccl else spec.sync_dir and "ponder_file")


def test_cpu_gets_its_threads_and_a_gpu_none() -> None:
    assert server_argv(TINY, CPU)[1]["OMP_NUM_THREADS"] == "2"
    assert server_argv(replace(TINY, threads=1), CPU)[1]["OMP_NUM_THREADS"] == "1"
    argv, env = server_argv(TINY, GPU)
    assert not any(name.startswith(("OMP_", "VLLM_CPU_")) for name in env)
    assert "--kv-cache-memory-bytes" not in argv


def test_a_server_sees_the_gpu_it_is_given_by_its_place_on_the_bus() -> None:
    two = replace(GPU, gpus=(Gpu("A100", 80.0, "5"), Gpu("A100", 80.0, "2")))
    env = server_argv(replace(TINY, gpus=(1,)), two)[1]
    assert (env["CUDA_VISIBLE_DEVICES"], env["CUDA_DEVICE_ORDER"]) == ("2", "PCI_BUS_ID")
    assert "CUDA_VISIBLE_DEVICES" not in server_argv(TINY, two)[1]


def test_the_cache_may_be_half_a_gibibyte() -> None:
    argv, _ = server_argv(replace(TINY, kv_cache_gb=0.5), CPU)
    assert argv[argv.index("--kv-cache-memory-bytes") + 1] == "536870912"


def test_without_a_sync_directory_no_weights_can_come() -> None:
    argv, env = server_argv(replace(TINY, sync_dir=None), CPU)
    assert "--weight-transfer-config" not in argv
    assert "PONDER_SYNC_DIR" not in env


def test_the_launchers_variables_do_not_reach_the_server() -> None:
    names = "RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR MASTER_PORT TORCHELASTIC_USE_AGENT_STORE ACCELERATE_USE_CPU"
    launcher = dict.fromkeys(f"{names} CUDA_VISIBLE_DEVICES OMP_NUM_THREADS OMP_PROC_BIND VLLM_API_KEY".split(), "1")
    wanted = {"PATH": "/bin", "HOME": "/home/u", "LC_ALL": "C.UTF-8", "LD_LIBRARY_PATH": "/cuda", "NCCL_DEBUG": "INFO"}
    env = server_env(launcher | wanted, {"OMP_NUM_THREADS": "2"})
    assert env == wanted | {"OMP_NUM_THREADS": "2"}


if __name__ == "__main__":
    for case in CASES:
        (GOLDEN / f"{case}.json").write_text(json.dumps(_golden(case), indent=1) + "\n")
