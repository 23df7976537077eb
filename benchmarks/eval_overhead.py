"""What `ponder eval` costs beyond sampling: the same requests by the client alone, and as a full evaluation.

    python benchmarks/eval_overhead.py --quick --sampler transformers --json overhead.json

Both sides share one sampler and its threads, and alternate: `ratio` is that of the median seconds, `cpu_ratio` that of
the median processor seconds of all processes of ours, which other load on the machine hardly touches. The full side
starts the reward workers, encodes prompts, samples, scores, keeps every chain on disk and makes the cells; the bare
side asks for the same again, all at once, with nothing around it. The bound is 1.15. --quick is short, so fixed costs
weigh more.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from rewards.pool import RewardPool
from rewards.tasks import load_task
from rl.evalcommand import EvalRequest, make_exam, open_sampler, parse_request, resolve_target
from rl.rundir import versions, write_json
from rollout.collect import Examiner, gather_all
from rollout.evaluate import make_cells
from rollout.prompt import Template
from rollout.sampling import SamplingParams
from rollout.server.hardware import probe
from rollout.store import EvalStore
from rollout.types import Completion, Sampler

BOUND = 1.15


class Recorder:
    """A sampler that remembers what it was asked."""

    def __init__(self, sampler: Sampler) -> None:
        self.inner, self.version = sampler, sampler.version
        self.requests: list[tuple[list[int], SamplingParams]] = []

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        self.requests.append((list(prompt_ids), params))
        return await self.inner.sample(prompt_ids, params)

    async def aclose(self) -> None:
        """The inner sampler's owner closes it."""


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="32 problems and 5 rounds instead of 128 and 7")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--sampler", choices=["vllm", "transformers"], default="vllm")
    parser.add_argument("--model", default="configs/models/bytes-tiny")
    parser.add_argument("--threads", type=int, help="of the transformers sampler; a server takes all cores")
    parser.add_argument("--task", default="countdown?numbers=3&style=plain")
    return parser.parse_args()


def request_of(args: argparse.Namespace) -> EvalRequest:
    """The evaluation that is measured: four samples at three budgets."""
    return parse_request(
        target=args.model, tasks=[args.task], problems=32 if args.quick else 128, split="test", ks="1,4",
        budgets="0,32,none", prompts="cot", shots=0, temperature=1.0, max_tokens=192, answer=32, reward=None,
        sampler=args.sampler, think=True, tokenizer=None, seed=0, out=None, resume=False, as_json=False,
    )  # fmt: skip


async def full(request: EvalRequest, template: Template, sampler: Sampler, exact: bool) -> float:
    """Seconds of the whole evaluation."""
    began, plan = time.monotonic(), request.plan
    with tempfile.TemporaryDirectory() as scratch:
        questions, task_of = make_exam(request, [load_task(spec) for spec in request.tasks], template)
        kept = EvalStore(Path(scratch) / "e.samples.jsonl.zst", asdict(plan), resume=False)
        kept.begin()
        async with RewardPool() as pool:
            for spec in {repr(q.problem.reward): q.problem.reward for q in questions}.values():
                await pool.load(spec)
            examiner = Examiner(sampler, template, pool, lambda problem: problem.reward, plan)
            await kept.answer(examiner, questions, exact, lambda: None)
        names, groups = (request.target, request.split), list(kept.groups.values())
        make_cells(groups, plan, lambda p: task_of[p.id], template.response_text, *names, request.ks)
    return time.monotonic() - began


async def bare(sampler: Sampler, requests: list[tuple[list[int], SamplingParams]]) -> tuple[float, int]:
    """Seconds of the requests alone, and the tokens that they gave."""
    began = time.monotonic()
    answers = await gather_all(sampler.sample(ids, params) for ids, params in requests)
    return time.monotonic() - began, sum(len(answer.token_ids) for answer in answers)


def cpu_seconds() -> float:
    """Processor seconds so far of this process, its descendants and those it has reaped."""
    own = psutil.Process()
    total = 0.0
    for process in [own, *own.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Both sides, alternating, after one evaluation that warms up and tells the requests."""
    request = request_of(args)
    target = resolve_target(request.target, request.sampler, request.think, None)
    template = Template.load(target.path, think=True)
    raw: dict[str, list[float]] = {"bare": [], "full": [], "bare_cpu": [], "full_cpu": []}
    async with open_sampler(target, 1024, request.seed) as sampler:
        recorder = Recorder(sampler)
        await full(request, template, recorder, target.sampler == "transformers")
        for _ in range(5 if args.quick else 7):
            before = cpu_seconds()
            alone, tokens = await bare(sampler, recorder.requests)
            between = cpu_seconds()
            whole = await full(request, template, sampler, target.sampler == "transformers")
            cpu = {"bare_cpu": between - before, "full_cpu": cpu_seconds() - between}
            for name, value in ({"bare": alone, "full": whole} | cpu).items():
                raw[name].append(value)
            print(f"bare {alone:.2f} s, full {whole:.2f} s; processor {cpu}", file=sys.stderr)
    medians = {name: statistics.median(values) for name, values in raw.items()}
    return {
        "ratio": medians["full"] / medians["bare"],
        "cpu_ratio": medians["full_cpu"] / medians["bare_cpu"],
        "bound": BOUND,
        "median_s": medians,
        "raw_s": raw,
        "requests": len(recorder.requests),
        "tokens": tokens,
        **{name: getattr(args, name) for name in ("sampler", "model", "task", "quick")},
    }


def main() -> None:
    """Measure, print, write."""
    args = options()
    hardware = probe()
    threads = hardware.cores
    if args.sampler == "transformers":
        import torch

        threads = args.threads or threads
        torch.set_num_threads(threads)
    print(f"threads of both sides: {threads}", file=sys.stderr)
    found = asyncio.run(measure(args))
    result = found | {"threads": threads, "machine": asdict(hardware), "versions": versions()}
    if args.json is not None:
        write_json(args.json, result)
    print(
        json.dumps(
            {key: result[key] for key in ("sampler", "requests", "tokens", "median_s", "ratio", "cpu_ratio", "bound")}
        )
    )


if __name__ == "__main__":
    main()
