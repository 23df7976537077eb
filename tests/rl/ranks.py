"""Ranks of a small learner as processes: started and reaped here, and what they run: `python -m tests.rl.ranks …`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LAYOUTS = ("none", "fsdp2")
CASES: dict[str, dict[str, Any]] = {  # name -> how the learner differs from the usual one
    "sgd": {"dtype": "float64", "sgd": True},
    "fp32": {"dtype": "float32", "sgd": True},
    "uneven": {"dtype": "float64", "sgd": True, "sizes": [3, 2], "train": {"tokens_per_microbatch": 20}},
    "adamw, untied, checkpointing, KL": {
        "dtype": "float64", "tied": False, "objective": {"kl_weight": 0.1, "correction": "token"},
        "train": {"gradient_checkpointing": True, "epochs": 2},
    },
    "ppo": {"dtype": "float64", "algorithm": "ppo", "train": {"epochs": 2, "tokens_per_microbatch": 40}},
    "lora, KL": {"dtype": "float64", "lora": True, "objective": {"kl_weight": 0.1}},
    "one chain a rank and less": {"dtype": "float64", "sgd": True, "sizes": [2], "train": {"minibatches": 1}},
}  # fmt: skip


RESUMED = ("adamw, untied, checkpointing, KL", "ppo", "lora, KL")  # of which checkpoints are loaded


@contextlib.contextmanager
def started(arguments: list[str], size: int, home: Path, **env: str) -> Iterator[list[subprocess.Popen[str]]]:
    """`size` ranks of `python -m tests.rl.ranks ARGUMENTS`, as a launcher without an agent starts them."""
    from rollout.server.process import free_port

    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    world |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"} | env
    ranks: list[subprocess.Popen[str]] = []
    try:
        for rank in range(size):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with (home / f"rank-{rank}.txt").open("w") as said:
                command = [sys.executable, "-m", "tests.rl.ranks", *arguments]
                ranks.append(
                    subprocess.Popen(
                        command, cwd=home, env=os.environ | world | place, stdout=said, stderr=said, text=True
                    )
                )
        yield ranks
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def finish(ranks: list[subprocess.Popen[str]], home: Path, patience: float = 280) -> tuple[list[int], list[str]]:
    """Exit codes and outputs, once all have ended."""
    deadline = time.monotonic() + patience
    try:
        codes = [process.wait(max(0.1, deadline - time.monotonic())) for process in ranks]
    except subprocess.TimeoutExpired:
        raise AssertionError("\n".join(said(home, rank) for rank in range(len(ranks)))) from None
    return codes, [said(home, rank) for rank in range(len(ranks))]


def said(home: Path, rank: int) -> str:
    return (home / f"rank-{rank}.txt").read_text()


def make(ranks: Any, case: dict[str, Any], checkpoint: Path | None = None) -> Any:
    """The learner of one case; of a checkpoint where one is given."""
    import torch
    from transformers import AutoModelForCausalLM

    from rl import attention
    from rl.config import CriticConfig, LoraConfig, ObjectiveConfig, TrainConfig
    from rl.learner import Learner
    from rl.model import add_adapter, twin
    from rl.presets import resolve_objective
    from tests.rl.chains import small_model

    wanted = resolve_objective(case.get("algorithm", "grpo"), ObjectiveConfig(**case.get("objective", {})))
    dtype = getattr(torch, case["dtype"])
    lora = case.get("lora")
    if checkpoint and not lora:
        policy = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, attn_implementation=attention.NAME)
    else:
        policy = small_model(tie_word_embeddings=case.get("tied", True)).to(dtype)
    reference = small_model(seed=1).to(dtype) if wanted.needs_reference else None
    if lora:
        reference = twin(policy) if reference is not None else None
        add_adapter(policy, LoraConfig(rank=2), 0, "base", checkpoint)
        with torch.no_grad():
            for name, parameter in () if checkpoint else policy.named_parameters():
                if ".lora_B" in name:
                    parameter.normal_(generator=torch.Generator().manual_seed(0))
    train = {"threads": 1, "learning_rate": 1e-2, "tokens_per_microbatch": 64, "minibatches": 2}
    settings = TrainConfig(**(train | case.get("train", {})))
    critic = (small_model(seed=2).to(dtype), CriticConfig(learning_rate=1e-2)) if wanted.needs_critic else None
    models: dict[str, Any] = {"reference": reference, "critic": critic}
    learner = Learner(policy, wanted, settings, temperature=0.7, total_steps=10, ranks=ranks, **models)
    if case.get("sgd"):
        learner.optimizer.optimizer = torch.optim.SGD([p for _, p, _ in learner.trained], lr=0.1)
    return learner


def one_step(ranks: Any, case: dict[str, Any]) -> dict[str, Any]:
    """{grad.NAME of the first optimizer step, weight.NAME after all of them, pushed.NAME, figure.NAME}, whole."""
    import torch

    from rl.parallel import full
    from rl.sync import ModuleSource
    from tests.rl.chains import random_groups

    found: dict[str, Any] = {}
    learner = make(ranks, case)
    clip = learner.accelerator.clip_grad_norm_

    def record(parameters: Any, norm: float) -> Any:
        for name, p, _ in learner.trained:
            if p.grad is not None:  # the critic's come later
                found.setdefault(f"grad.{name}", full(p.grad).clone())
        return clip(parameters, norm)

    learner.accelerator.clip_grad_norm_ = record
    # what the others are given is not looked at: they train on rank 0's
    groups = random_groups(tuple(case.get("sizes", (5, 4, 3))), seed=3) if ranks.rank == 0 else []
    stats = learner.step(groups, 0)
    found |= {f"weight.{name}": full(p.detach()) for name, p in learner.policy.named_parameters()}
    found |= {
        f"pushed.{name}": tensor for name, tensor in ModuleSource(learner.policy, "float32", ranks=ranks).tensors()
    }
    timed = ("time/", "mfu")
    return found | {
        f"figure.{name}": torch.tensor(value, dtype=torch.float64)
        for name, value in stats.items()
        if not name.startswith(timed)
    }


def saved(learner: Any, path: Path) -> None:
    """A checkpoint, written by rank 0 while the others take part."""
    from rl.checkpoint import save_checkpoint
    from rl.model import save_model
    from rl.sync import ModuleSource

    state, ranks = learner.state_dict(), learner.ranks
    if ranks.rank == 0:
        write = partial(save_model, learner.policy, path, ranks=ranks)
        save_checkpoint(path, 1, write, state, {}, 1)
    elif ranks.sharded:
        adapter = ModuleSource(learner.policy, "float32", "adapter", ranks)  # in the order of save_model
        merged = ModuleSource(learner.policy, str(learner.policy.dtype).removeprefix("torch."), ranks=ranks)
        for source in (adapter, merged):
            for _ in source.tensors():
                pass


def resumed(ranks: Any, case: dict[str, Any], root: Path) -> dict[str, Any]:
    """The weights one step after the checkpoint below `root`."""
    from rl.checkpoint import Checkpoint
    from rl.parallel import full

    checkpoint = Checkpoint(root / "step-1", 1)
    learner = make(ranks, case, checkpoint.path)
    learner.load_state_dict(checkpoint.learner_state())
    learner.step(second_groups(), 1)
    return {name: full(p.detach()) for name, p in learner.policy.named_parameters()}


def write(path: Path, tensors: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)


def all_cases(ranks: Any, out: Path) -> None:
    """Every case in both layouts, and checkpoints of all layouts loaded in both."""
    for layout in LAYOUTS:
        ranks.sharded = layout == "fsdp2"
        for name, case in CASES.items():
            found = one_step(ranks, case)
            if ranks.rank == 0:
                write(out / f"{name} {layout}.safetensors", found)
    for name in RESUMED:
        for layout in LAYOUTS:
            ranks.sharded = layout == "fsdp2"
            learner = make(ranks, CASES[name])
            learner.step(first_groups(), 0)
            saved(learner, out / f"{name} of {layout}")
            ranks.most(0)  # the others wait until it is written
        for source in ("one", *LAYOUTS):
            for layout in LAYOUTS:
                ranks.sharded = layout == "fsdp2"
                found = resumed(ranks, CASES[name], out / f"{name} of {source}")
                if ranks.rank == 0:
                    write(out / f"{name} of {source} in {layout}.safetensors", found)


def first_groups() -> Any:
    from tests.rl.chains import random_groups

    return random_groups((4, 4), seed=4)


def second_groups() -> Any:
    from tests.rl.chains import random_groups

    return random_groups((4, 4), seed=5)


def troubles(ranks: Any, out: Path) -> None:
    """What goes wrong on one rank alone: a loss that is not finite, a check of rank 0's that refuses."""
    import torch

    from rewards.errors import Fault

    figures: dict[str, Any] = {}
    for layout in LAYOUTS:
        ranks.sharded = layout == "fsdp2"
        learner = make(ranks, {"dtype": "float32", "train": {"minibatches": 1}})
        sound = learner.loss
        if ranks.rank == 1:
            learner.loss = lambda tokens, low, high: (tokens.current * float("nan"), torch.zeros_like(tokens.mask))
        skipped = learner.step(first_groups(), 0)
        learner.loss = sound

        def refuse(stats: Any) -> None:
            raise Fault("rank 0 does not want it")

        try:
            learner.step(first_groups(), 0, check=refuse if ranks.rank == 0 else None)
            refused = "no"
        except Fault as error:
            refused = str(error)
        figures[layout] = [skipped["updates/nonfinite"], refused, learner.step(first_groups(), 0)["updates/done"]]
    (out / f"troubles-{ranks.rank}.json").write_text(json.dumps(figures))


def train(arguments: list[str]) -> None:
    """`python -m rl.train`, with a collective's time-out of 5 s, waits of 1 s, and what TROUBLE asks for."""
    import torch.distributed as dist
    import typer

    from rl import learner, parallel, train
    from rl.exits import run_command
    from rollout.transformers_sampler import TransformersSampler

    original, sample, update = dist.init_process_group, TransformersSampler.sample, learner.Learner._update
    parallel.PATIENCE = timedelta(seconds=1)
    dist.init_process_group = partial(original, timeout=timedelta(seconds=5))
    trouble = os.environ.get("TROUBLE", "")

    async def slow(self: Any, prompt_ids: Any, params: Any) -> Any:
        print("sampling", flush=True)
        await asyncio.sleep(float(trouble.partition(" ")[2]))
        return await sample(self, prompt_ids, params)

    def fail(self: Any, *args: Any) -> None:
        if self.ranks.rank == 1:
            raise RuntimeError("out of memory")
        update(self, *args)

    if trouble.startswith("slow"):
        TransformersSampler.sample = slow  # type: ignore[method-assign]
    if trouble == "fault":
        learner.Learner._update = fail  # type: ignore[method-assign,assignment]
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(train.train)
    sys.exit(run_command(lambda: app(arguments, standalone_mode=False)))


if __name__ == "__main__":
    if sys.argv[1] == "train":
        train(sys.argv[2:])
    from rl.parallel import join

    ranks, out = join(os.environ, False), Path(sys.argv[1])
    troubles(ranks, out)
    all_cases(ranks, out)
