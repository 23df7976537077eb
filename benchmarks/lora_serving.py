"""What decoding costs on a server that takes LoRA adapters alone, against one that gets them merged.

    python benchmarks/lora_serving.py --rank 16 --rounds 7 --json lora_serving.json

Two vLLM servers of the same model take turns; the second is asked without an adapter (`ready`) and with one (`used`).
Each ratio is the median over rounds of tokens a second by those of the plain server just before it. It is why
`model.lora.push=auto` merges on a CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from rl.config import LoraConfig
from rl.memory import served_rank
from rl.model import add_adapter, load_policy
from rl.rundir import versions, write_json
from rl.sync import AdapterPush, FilePush, ModuleSource
from rollout.client import ServerControl, VllmClient
from rollout.sampling import SamplingParams
from rollout.server.argv import ServerSpec
from rollout.server.hardware import probe
from rollout.server.process import ServerProcess, free_port

ROOT = Path(__file__).parents[1]
TOKENS = 100  # of a chain


async def measure(model: str, rank: int, rounds: int, chains: int, scratch: Path) -> dict[str, list[float]]:
    """Tokens a second of each round, by arm."""
    lora = LoraConfig(rank=rank, push="adapter")
    arms: dict[str, tuple[VllmClient, str]] = {}
    async with contextlib.AsyncExitStack() as stack:
        for name, slots in (("plain", 0), ("ready", served_rank(lora, probe()))):
            spec = ServerSpec(
                model=model, dtype="float32", max_model_len=256, seed=0, port=free_port(), sync_dir=str(scratch / name),
                load_format="auto", kv_cache_gb=0.5, gpu_memory_utilization=0.3, eager=True, threads=None,
                lora_rank=slots,
            )  # fmt: skip
            log, owned = scratch / f"{name}.log", [scratch / name]
            server = await ServerProcess.start(spec, log=log, key="key", hardware=probe(), owned_dirs=owned)
            stack.push_async_callback(server.stop)
            client = await stack.enter_async_context(contextlib.aclosing(VllmClient([server.url], "key", context=256)))
            arms[name] = client, ""
        control = await stack.enter_async_context(contextlib.aclosing(ServerControl(server.url, "key")))
        policy, _ = load_policy(model, "float32", 0)
        add_adapter(policy, lora, 0, model)
        pusher = AdapterPush([control], FilePush([control], scratch / "ready"), scratch / "ready")
        await pusher.push(ModuleSource(policy), 0)
        arms["used"] = client, pusher.adapter

        async def speed(client: VllmClient, adapter: str) -> float:
            client.model, start = adapter, time.perf_counter()
            await asyncio.gather(*(client.sample([5, 6, 7], SamplingParams(TOKENS, (), i)) for i in range(chains)))
            return chains * TOKENS / (time.perf_counter() - start)

        speeds: dict[str, list[float]] = {name: [] for name in arms}
        for number in range(rounds + 1):  # the first is to warm up
            for name, arm in arms.items():
                found = await speed(*arm)
                speeds[name] += [found] if number else []
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "configs/models/countdown-tiny"))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--chains", type=int, default=64, help="at once")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ponder-bench-") as scratch:
        speeds = asyncio.run(measure(args.model, args.rank, args.rounds, args.chains, Path(scratch)))
    pairs = {k: zip(speeds[k], speeds["plain"], strict=True) for k in ("ready", "used")}
    ratios = {f"{k}_ratio": median(mine / plain for mine, plain in both) for k, both in pairs.items()}
    result: dict[str, Any] = ratios | {
        "tokens_a_second": speeds,
        "rank": args.rank,
        "chains": args.chains,
        "versions": versions(),
    }
    print(json.dumps(result, indent=1))
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    main()
