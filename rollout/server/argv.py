"""From a specification to vLLM's command line: pure, so that golden files can pin it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rollout.server.hardware import Hardware

# OpenMP's threads wait for each other by spinning, by default so long that they burn a neighbour's time.
SPIN_VARIABLE, SPIN_COUNT = "GOMP_SPINCOUNT", "3000"

# What a server may see of its launcher's environment. A list of what is allowed, since every launcher has variables of
# its own: RANK, MASTER_ADDR or TORCHELASTIC_* make vLLM join the trainer's process group, OMP_NUM_THREADS=1
# (accelerate's default) would cost it all threads but one.
_PASSED = """
    PATH HOME USER LOGNAME SHELL LANG LANGUAGE TZ TMPDIR LD_LIBRARY_PATH LD_PRELOAD PYTHONPATH VIRTUAL_ENV CONDA_PREFIX
    CUDA_HOME CUDA_PATH CUDA_DEVICE_ORDER CUDNN_PATH NVIDIA_VISIBLE_DEVICES NVIDIA_DRIVER_CAPABILITIES
    HF_HOME XDG_CACHE_HOME XDG_CONFIG_HOME VLLM_CACHE_ROOT VLLM_LOGGING_LEVEL
    """

# Raw logprobs would ignore the temperature; a model's generation_config.json would set sampling fields behind the
# client's back; without --enable-scale-out the route that takes and gives token ids answers 403.
_FLAGS = """
    --generation-config vllm --logprobs-mode processed_logprobs --max-logprobs 20 --enable-scale-out
    --enable-prefix-caching --middleware rollout.server.middleware.RequireKey --no-enable-log-requests
    --disable-log-stats --disable-uvicorn-access-log --disable-fastapi-docs
    """

_ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # the weight routes; the key guards them
    "VLLM_HOST_IP": "127.0.0.1",  # the engine's own sockets stay on this host too
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",  # the model is a directory: nothing is to be fetched
    "VLLM_PLUGINS": "ponder_weights",  # nobody else's plugin loads into the policy's server
    "PYTHONSAFEPATH": "1",  # a user's rewards.py in the working directory must not shadow ours
    "PYTHONUNBUFFERED": "1",  # the log's last lines explain a crash
}


@dataclass(frozen=True)
class ServerSpec:
    model: str  # a model directory
    dtype: str  # float32 | bfloat16
    max_model_len: int  # tokens, prompt and completion together
    seed: int
    port: int
    sync_dir: str | None  # where pushed weights are read from; None = from nowhere
    load_format: Literal["auto", "dummy"]  # dummy = the weights come with the first push
    kv_cache_gb: float  # GiB, on a CPU
    gpu_memory_utilization: float  # share of the GPU's memory
    eager: bool  # no torch.compile
    threads: int | None  # on a CPU; None = all cores
    max_num_seqs: int = 256  # sequences decoded together
    nccl: bool = False  # pushed weights come over NCCL
    fp32_head: bool = False  # logits in fp32 on a GPU, as the learner makes them
    lora_rank: int = 0  # of adapters that it takes beside the model, one of vLLM's own ranks; 0 = none
    gpus: tuple[int, ...] = ()  # which of the hardware's it may see; none = all


def server_argv(spec: ServerSpec, hardware: Hardware) -> tuple[list[str], dict[str, str]]:
    """The interpreter's arguments and the variables to add to the environment."""
    argv = ["-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(spec.port)]
    argv += ["--model", spec.model, "--served-model-name", "policy", "--load-format", spec.load_format]
    argv += ["--dtype", spec.dtype, "--max-model-len", str(spec.max_model_len)]
    argv += ["--max-num-seqs", str(spec.max_num_seqs), "--seed", str(spec.seed), *_FLAGS.split()]
    argv += ["--enforce-eager"] if spec.eager else []
    env = dict(_ENVIRONMENT)
    if spec.nccl or spec.sync_dir is not None:
        argv += ["--weight-transfer-config", json.dumps({"backend": "nccl" if spec.nccl else "ponder_file"})]
    if spec.sync_dir is not None:
        env["PONDER_SYNC_DIR"] = spec.sync_dir
    if spec.lora_rank:  # two: the one that serves, and the one before
        argv += ["--enable-lora", "--max-lora-rank", str(spec.lora_rank), "--max-loras", "2"]
        env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if hardware.gpus:
        argv += ["--gpu-memory-utilization", str(spec.gpu_memory_utilization)]
        argv += ["--hf-overrides", json.dumps({"head_dtype": "float32"})] if spec.fp32_head else []
        if spec.gpus:  # the ids are numbers in nvidia-smi's order, which is not CUDA's own where the cards differ
            ids = ",".join(hardware.gpus[i].id for i in spec.gpus)
            env |= {"CUDA_VISIBLE_DEVICES": ids, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        return argv, env
    # In bytes: VLLM_CPU_KVCACHE_SPACE takes whole GiB only.
    argv += ["--kv-cache-memory-bytes", str(int(spec.kv_cache_gb * 2**30))]
    # A prompt cut over two engine steps makes vLLM rewind the request's seeded generator, which torch can't on a CPU:
    # the engine would die ("CPU Generator does not use offset"). So prompts are never cut, and each must fit a step.
    argv += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(max(spec.max_model_len, 8192))]
    # Bound threads would leave one core to the API server: slower for small models, and unfair to the learner.
    threads = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(spec.threads or hardware.cores)}
    return argv, env | threads | {SPIN_VARIABLE: SPIN_COUNT}


def server_env(base_env: Mapping[str, str], additions: Mapping[str, str]) -> dict[str, str]:
    """The server's whole environment: what `_PASSED` lets through of the launcher's, and the additions."""
    names, prefixes = _PASSED.split(), ("LC_", "NCCL_")  # NCCL's must be the same on both sides of a weight push
    return {k: v for k, v in base_env.items() if k in names or k.startswith(prefixes)} | dict(additions)
