"""`ponder pretrain`: next-word prediction from scratch on search traces, the base that RL starts from, by the learner's
own packing and log-probabilities. The loss is the mean over the tokens behind the prompt; prompts are not learnt."""

import itertools
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from pydantic import Field

from rewards.errors import BadInput
from rewards.tasks import load_task
from rewards.tasks.countdown import write_trace
from rl.batch import flatten, pack
from rl.config import Section
from rl.model import load_policy, policy_logprobs, save_model
from rl.rundir import command, versions, write_json
from rl.views import RunProgress
from rollout.chain import bare_chain, merge
from rollout.prompt import Template
from rollout.types import Chain, Completion


class PretrainConfig(Section):
    """Pre-training of a tiny model on countdown traces."""

    model: str
    out: str
    task: str = "countdown?numbers=3-4"
    seed: int = Field(0, ge=0)
    steps: int = Field(1500, ge=1)
    tokens_per_step: int = Field(6144, ge=1)
    learning_rate: float = Field(3e-3, gt=0)
    warmup_steps: int = Field(50, ge=0)
    threads: int | None = Field(None, ge=1)


def pretrain(config: PretrainConfig) -> float:
    """Train and save; returns the last mean loss in nats a token. Raises BadInput."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    template = Template.load(config.model, think=True)
    policy, _ = load_policy(config.model, "float32", config.seed, fresh=True)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
    batches = trace_batches(config, template)
    log: list[dict[str, float]] = []
    began, tokens, recent = time.monotonic(), 0, []
    with RunProgress(config.steps) as progress:
        progress.phase("pre-training")
        for step in range(1, config.steps + 1):
            optimizer.param_groups[0]["lr"] = config.learning_rate * schedule(step - 1, config)
            chains = next(batches)
            recent.append(train_step(policy, optimizer, chains, config.tokens_per_step))
            tokens += sum(len(chain.token_ids) for chain in chains)
            if step % 25 == 0 or step == config.steps:
                loss, recent = sum(recent) / len(recent), []
                seconds = time.monotonic() - began
                log.append({"step": step, "loss": loss, "tokens": tokens, "seconds": seconds})
                progress.reached(step, f"loss {loss:.3f}  {tokens / seconds:,.0f} tokens/s")
    save_model(policy, config.model, config.out)
    record = {"command": command(), "config": config.model_dump(), "versions": versions(), "log": log}
    write_json(Path(config.out, "pretrain.json"), record)
    return log[-1]["loss"]


def schedule(step: int, config: PretrainConfig) -> float:
    """Share of the peak learning rate at optimizer step `step` (from 0): linear warm-up, then a cosine to zero."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return (1 + math.cos(math.pi * done)) / 2


def train_step(policy: torch.nn.Module, optimizer: torch.optim.Optimizer, chains: list[Chain], room: int) -> float:
    """One optimizer step on the mean loss over the chains' sampled tokens, which it returns (nats a token)."""
    batch = flatten(chains, version=0)
    total = 0.0
    for micro in pack(batch, batch.sequences, room):
        logprobs, _ = policy_logprobs(policy, micro, batch.targets[micro.rows], temperature=1.0)
        loss = -logprobs.sum() / len(batch.targets)
        loss.backward()
        total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return total


def trace_batches(config: PretrainConfig, template: Template) -> Iterator[list[Chain]]:
    """Endless batches of traces of about `tokens_per_step` tokens, each trace a function of (seed, index).
    A trace is a chain whose response counts as sampled, so that it is what gets trained. Raises BadInput."""
    task = load_task(config.task, config.seed)
    batch: list[Chain] = []
    for index in itertools.count():
        problem = task.problem(index, "train")
        if "numbers" not in problem.meta or "target" not in problem.meta:
            raise BadInput(f"problem {problem.id} is no countdown problem, and traces are written for those alone")
        trace = write_trace(problem, random.Random(f"{config.seed}|{index}"))
        ids = [*template.tokenizer.encode(trace, add_special_tokens=False), template.stop_ids[0]]
        chain = bare_chain(problem.id, problem.id, template.encode(problem.prompt))
        batch.append(merge(chain, (), Completion(ids, [0.0] * len(ids), "stop", 0)))
        if sum(len(chain.token_ids) for chain in batch) >= config.tokens_per_step:
            yield batch
            batch = []
