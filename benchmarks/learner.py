"""How fast the learner's step is against TRL's on the same samples, and what its memory savers cost.

    python benchmarks/learner.py --quick --json learner.json

Both sides take one optimizer step on the same chains with the same weights, threads (`--threads`) and objective (GRPO,
no KL, AdamW, fp32), in this process, taking turns; each side's micro-batch is the fastest of a few tried before. Ours
is `Learner.step`. TRL's is `GRPOTrainer.training_step` on each micro-batch, clipping and the optimizer, with the batch
padded to its longest chain as TRL's own generation pads it, and no gradient checkpointing. Both must find the same
gradient norm. Tokens per second count real tokens; `mfu` is useful work (6 N T plus attention, no recomputing) over the
matrix-multiplication speed measured in the same round. Figures are medians over rounds, ratios of one round each.
Equal lengths are random ids; natural lengths are data/demo_chains.jsonl, one step of a trained demo policy (all 256
for the tiny model; for the 135M one as many as fit, evenly spaced by length). Memory is measured in processes of its
own, as the rise of the resident set above what was there before. --quick cuts sizes: its figures only show that all
runs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from rewards.types import Problem, Score
from rl import attention
from rl.batch import balance
from rl.config import ObjectiveConfig, TrainConfig
from rl.flops import ModelShape, measure_peak_gflops, training_flops
from rl.learner import Learner
from rl.logprobs import head_logprobs
from rl.model import load_policy
from rl.presets import resolve_objective
from rl.rundir import installed, versions, write_json
from rollout.prompt import load_tokenizer
from rollout.server.hardware import probe
from rollout.types import Chain, Group

CHAINS = Path(__file__).parent / "data/demo_chains.jsonl"
TINY = "configs/models/countdown-tiny"
PROMPT = 7  # tokens, as in the sample file
RATE, TEMPERATURE = 1e-6, 1.0
PARTS = (2, 4, 8)  # ranks among which the natural chains are shared
PATIENCE_S = 240.0  # no new round after so long; two rounds there always are
Sides = dict[str, Callable[[], float]]  # name -> one step, giving its gradient norm


@dataclass(frozen=True)
class Size:
    """How much of everything is measured for one model."""

    equal: tuple[int, int]  # chains, tokens of each
    natural: int  # chains
    cut: int  # tokens of a natural chain that are kept
    tries: tuple[int, ...]  # tokens of a micro-batch, each side takes its best
    rounds: tuple[int, int]  # with equal and with natural lengths, fewer where the machine is slow


FULL = {
    "tiny": Size((256, 176), 256, 10**6, (2048, 8192, 16384), (15, 9)),
    "135m": Size((16, 128), 8, 10**6, (512, 1024), (7, 5)),
}
QUICK = {
    "tiny": Size((64, 64), 32, 256, (2048, 8192), (3, 3)),
    "135m": Size((4, 64), 4, 96, (256,), (2, 2)),
}


def llama_135m(attn: str) -> PreTrainedModel:
    """SmolLM2-135M's shape with random weights, the same ones at each call."""
    config = LlamaConfig(
        hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536,
        vocab_size=49152, max_position_embeddings=8192, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attn)


def load(name: str, attn: str = attention.NAME) -> PreTrainedModel:
    return llama_135m(attn) if name == "135m" else load_policy(TINY, "float32", 0, attn)[0]


def grouped(chains: Sequence[tuple[list[int], int]], values: Sequence[float], group_size: int) -> list[Group]:
    """Chains, as (ids, length of the prompt), as scored groups."""
    groups = []
    for start in range(0, len(chains), group_size):
        members = [
            Chain(
                id=str(start + i), problem_id=str(start), token_ids=ids, prompt_len=prompt,
                sampled=[False] * prompt + [True] * (len(ids) - prompt), sampler_logprobs=[0.0] * len(ids),
                versions=[(prompt, 0)], finish_reason="stop",
                score=Score(value=value, correct=value >= 1, status="ok" if value >= 1 else "wrong"),
            )
            for i, ((ids, prompt), value) in enumerate(
                zip(chains[start : start + group_size], values[start : start + group_size], strict=True)
            )
        ]  # fmt: skip
        groups.append(Group(Problem(str(start), "bench", "", None, ""), members))
    return groups


def natural_file() -> list[dict[str, Any]]:
    return [json.loads(line) for line in CHAINS.read_text().splitlines()]


def natural_groups(size: Size) -> list[Group]:
    """Chains of the file: all with their own groups and values, or evenly spaced by length, the longest included."""
    rows = natural_file()
    values = [float(row["value"]) for row in rows]
    if size.natural < len(rows):
        ranked = sorted(rows, key=lambda row: len(row["token_ids"]))
        rows = [ranked[round((i + 0.5) * len(rows) / size.natural)] for i in range(size.natural - 1)] + ranked[-1:]
        random.Random(0).shuffle(rows)
        values = [float(i % 2) for i in range(len(rows))]
    chains = [(row["token_ids"][: size.cut], row["prompt_len"]) for row in rows]
    return grouped(chains, values, min(8, len(chains)))


def equal_groups(size: Size) -> list[Group]:
    count, length = size.equal
    rng = random.Random(0)
    chains = [([rng.randrange(16, 216) for _ in range(length)], PROMPT) for _ in range(count)]
    return grouped(chains, [float(i % 2) for i in range(count)], min(8, count))


def make_learner(model: PreTrainedModel, tokens: int, threads: int, **more: Any) -> Learner:
    train = TrainConfig(learning_rate=RATE, tokens_per_microbatch=tokens, threads=threads, **more)
    objective = resolve_objective("grpo", ObjectiveConfig())
    return Learner(model, objective, train, temperature=TEMPERATURE, total_steps=10**6)


class Ours:
    """The learner's side."""

    def __init__(self, name: str, threads: int) -> None:
        self.threads, self.learner = threads, make_learner(load(name), 1, threads)

    def stepper(self, groups: list[Group], tokens: int) -> Callable[[], float]:
        """One step on these chains in micro-batches of at most `tokens`."""
        train = self.learner.train.model_copy(update={"tokens_per_microbatch": tokens})

        def step() -> float:
            self.learner.train = train
            return self.learner.step(groups, version=0)["grad_norm"]

        return step


class Theirs:
    """TRL's side. `_prepare_inputs`, which would generate, hands over what it is given; all else is TRL's own."""

    def __init__(self, name: str, threads: int) -> None:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        self.folder = tempfile.TemporaryDirectory()  # gone with this object
        args = GRPOConfig(
            output_dir=self.folder.name, use_cpu=True, bf16=False, gradient_checkpointing=False, beta=0.0,
            loss_type="grpo", epsilon=0.2, temperature=TEMPERATURE, learning_rate=RATE, weight_decay=0.0,
            max_grad_norm=1.0, per_device_train_batch_size=8, num_generations=8, report_to="none", save_strategy="no",
        )  # fmt: skip
        self.trainer = GRPOTrainer(
            model=load(name, "sdpa"), args=args, processing_class=load_tokenizer(TINY),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            train_dataset=Dataset.from_dict({"prompt": ["1"] * 8}),
        )  # fmt: skip
        self.trainer._prepare_inputs = lambda inputs: inputs
        self.trainer.create_optimizer()
        self.trainer.model, self.trainer.optimizer = self.trainer.accelerator.prepare(
            self.trainer.model, self.trainer.optimizer
        )
        torch.set_num_threads(threads)

    def stepper(self, groups: list[Group], tokens: int) -> Callable[[], float]:
        """One step, micro-batches of as many padded chains as make at most `tokens`, and divide the batch."""
        inputs = padded(groups)
        count, length = len(inputs["advantages"]), inputs["prompt_ids"].shape[1] + inputs["completion_ids"].shape[1]
        size = max(n for n in range(1, count + 1) if count % n == 0 and (n == 1 or n * length <= tokens))
        parts = [{k: v[i : i + size] for k, v in inputs.items()} for i in range(0, count, size)]

        def step() -> float:
            trainer = self.trainer
            trainer.current_gradient_accumulation_steps = len(parts)
            trainer.model.train()
            for part in parts:
                trainer.training_step(trainer.model, part, None)
            norm = trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
            return float(norm)

        return step


def padded(groups: list[Group]) -> dict[str, Tensor]:
    """TRL's inputs: prompts padded on the left, completions on the right, both to the longest of the batch."""
    chains = [chain for group in groups for chain in group.chains]
    prompt, rest = (max(lens) for lens in zip(*((c.prompt_len, len(c.response_ids)) for c in chains), strict=True))
    out = {name: torch.zeros(len(chains), prompt, dtype=torch.long) for name in ("prompt_ids", "prompt_mask")}
    out |= {name: torch.zeros(len(chains), rest, dtype=torch.long) for name in ("completion_ids", "completion_mask")}
    for i, chain in enumerate(chains):
        n, m = chain.prompt_len, len(chain.response_ids)
        out["prompt_ids"][i, prompt - n :] = torch.tensor(chain.token_ids[:n])
        out["prompt_mask"][i, prompt - n :] = 1
        out["completion_ids"][i, :m] = torch.tensor(chain.response_ids)
        out["completion_mask"][i, :m] = 1
    values = torch.tensor([[c.score.value if c.score else None for c in g.chains] for g in groups], dtype=torch.float64)
    centred = values - values.mean(1, keepdim=True)
    return out | {"advantages": (centred / (values.std(1, keepdim=True) + 1e-4)).flatten().float()}


def timed(step: Callable[[], Any]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def say(*words: Any) -> None:
    print(*words, file=sys.stderr, flush=True)


def alternate(sides: Sides, rounds: int, label: str) -> dict[str, list[float]]:
    """Seconds of each side by round, who begins changes; `peak` is the machine's GFLOP/s then."""
    norms = {side: step() for side, step in sides.items()}  # a warm-up, too
    assert abs(norms["ours"] / norms["trl"] - 1) < 0.01, f"{label}: gradients of different norms {norms}"
    times: dict[str, list[float]] = {"ours": [], "trl": [], "peak": []}
    began = time.perf_counter()
    for number in range(rounds):
        if number > 1 and time.perf_counter() - began > PATIENCE_S:
            break
        times["peak"].append(measure_peak_gflops())
        for side in list(sides)[:: 1 if number % 2 else -1]:
            times[side].append(timed(sides[side]))
        say(label, number, {side: round(found[-1], 3) for side, found in times.items()})
    return times


def compare(name: str, size: Size, threads: int) -> dict[str, Any]:
    """One model: seconds of both sides with equal and natural lengths, ratios and shares of the peak."""
    ours = Ours(name, threads)
    sides: dict[str, Ours | Theirs] = {"ours": ours, "trl": Theirs(name, threads)}
    shape, found = ModelShape.of(ours.learner.policy), {}
    equal, natural = equal_groups(size), natural_groups(size)
    small = equal[: max(1, len(equal) // 2)]
    best = {}
    for side, maker in sides.items():
        tried = {tokens: maker.stepper(small, tokens) for tokens in size.tries}
        tried[size.tries[0]]()  # a warm-up
        speeds = {tokens: min(timed(step), timed(step)) for tokens, step in tried.items()}
        best[side] = min(speeds, key=speeds.__getitem__)
        say(name, side, "seconds by tokens of a micro-batch:", {k: round(v, 3) for k, v in speeds.items()})
    for kind, groups, rounds in (("equal", equal, size.rounds[0]), ("natural", natural, size.rounds[1])):
        steps = {side: maker.stepper(groups, best[side]) for side, maker in sides.items()}
        times = alternate(steps, rounds, f"{name} {kind}")
        lengths = [len(c.token_ids) for g in groups for c in g.chains]
        flops = training_flops(shape, lengths, sum(c.sampled_count for g in groups for c in g.chains))
        found[kind] = {
            "tokens": sum(lengths),
            "length_ratio": sum(lengths) / len(lengths) / max(lengths),
            "ratio": statistics.median(b / a for a, b in zip(times["ours"], times["trl"], strict=True)),
            "tokens_per_s": {side: sum(lengths) / statistics.median(times[side]) for side in sides},
            "mfu": {
                side: statistics.median(flops / s / p / 1e9 for s, p in zip(times[side], times["peak"], strict=True))
                for side in sides
            },
            "raw_s": times,
        }
    return {"microbatch_tokens": best} | found


# Memory: each of these runs alone in a process of its own (`--alone NAME TOKENS`).


def plain_head(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logprobs and entropies as one writes them down, with as few tensors of [N, V] as that allows."""
    logprobs = (hidden / temperature @ weight.T).log_softmax(-1)
    with torch.no_grad():
        entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1), entropy


def head(chunked: bool, tokens: int) -> Callable[[int], Any]:
    """Forward and backward of the output head alone, to the hidden states and the weight."""
    weight = torch.randn(49152, 576).mul_(0.02).requires_grad_()
    hidden = torch.randn(tokens, 576).requires_grad_()
    targets = torch.randint(0, 49152, (tokens,))

    def run(rows: int) -> None:
        part = hidden[:rows]
        logprobs, _ = (head_logprobs if chunked else plain_head)(part, weight, targets[:rows], TEMPERATURE)
        logprobs.sum().backward()
        hidden.grad = weight.grad = None

    return run


def whole_step(checkpointing: bool, tokens: int) -> Callable[[int], Any]:
    """A learner's step of the 135M model on chains of 128 tokens, all in one micro-batch."""
    learner = make_learner(load("135m"), tokens, torch.get_num_threads(), gradient_checkpointing=checkpointing)
    return lambda count: learner.step(equal_groups(Size((max(2, count // 128), 128), 0, 0, (), (0, 0))), 0)


ALONE: dict[str, Callable[[int], Callable[[int], Any]]] = {
    "head_plain": lambda tokens: head(False, tokens),
    "head_chunked": lambda tokens: head(True, tokens),
    "step_plain": lambda tokens: whole_step(False, tokens),
    "step_checkpointed": lambda tokens: whole_step(True, tokens),
}


def resident(field: str) -> int:
    """A figure of this process's memory (VmRSS, VmHWM), bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def alone(name: str, tokens: int, threads: int) -> None:
    """Print seconds and the rise of the resident set of one run, after a small one."""
    torch.set_num_threads(threads)
    run = ALONE[name](tokens)
    run(256)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = resident("VmRSS")
    seconds = timed(lambda: run(tokens))
    print(json.dumps({"seconds": seconds, "peak_bytes": resident("VmHWM") - before, "before_bytes": before}))


def memory(pair: tuple[str, str], tokens: int, rounds: int, threads: int) -> dict[str, Any]:
    """What the second of a pair takes of the first's memory, and its speed; processes take turns."""
    raw: dict[str, list[dict[str, float]]] = {name: [] for name in pair}
    began = time.perf_counter()
    for number in range(rounds):
        if number and time.perf_counter() - began > PATIENCE_S:
            break
        for name in pair[:: 1 if number % 2 else -1]:
            command = [sys.executable, __file__, "--threads", str(threads), "--alone", name, str(tokens)]
            raw[name].append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
            say(name, raw[name][-1])
    plain, saver = (raw[name] for name in pair)

    def middle(rows: list[dict[str, float]], key: str) -> float:
        return statistics.median(row[key] for row in rows)

    return {
        "memory_ratio": middle(saver, "peak_bytes") / middle(plain, "peak_bytes"),
        "speed_ratio": statistics.median(a["seconds"] / b["seconds"] for a, b in zip(plain, saver, strict=True)),
        "peak_mib": {name: middle(raw[name], "peak_bytes") / 2**20 for name in pair},
        "tokens": tokens,
        "raw": raw,
    }


def rank_balance() -> dict[str, float]:
    """(max - min) / mean of the ranks' tokens for the natural chains, by number of ranks."""
    lengths = [len(row["token_ids"]) for row in natural_file()]
    shares = {parts: [sum(lengths[i] for i in part) for part in balance(lengths, parts)] for parts in PARTS}
    return {str(parts): (max(each) - min(each)) / statistics.mean(each) for parts, each in shares.items()}


def measure(quick: bool, threads: int) -> dict[str, Any]:
    """Everything; the figures that have bounds on top."""
    sizes = QUICK if quick else FULL
    pairs = {"head": ("head_plain", "head_chunked"), "step": ("step_plain", "step_checkpointed")}
    tokens, rounds = ({"head": 1024, "step": 512}, 1) if quick else ({"head": 16384, "step": 2048}, 3)
    savers = {name: memory(pair, tokens[name], rounds, threads) for name, pair in pairs.items()}
    models = {name: compare(name, size, threads) for name, size in sizes.items()}
    lengths, balances = [len(row["token_ids"]) for row in natural_file()], rank_balance()
    return {
        "ratio_equal_lengths": min(model["equal"]["ratio"] for model in models.values()),
        "ratio_natural_lengths": min(model["natural"]["ratio"] for model in models.values()),
        "length_ratio": statistics.mean(lengths) / max(lengths),
        "mfu_135m": models["135m"]["equal"]["mfu"]["ours"],
        "mfu_135m_trl": models["135m"]["equal"]["mfu"]["trl"],
        "peak_gflops": statistics.median(
            p for model in models.values() for kind in ("equal", "natural") for p in model[kind]["raw_s"]["peak"]
        ),
        "head_memory_ratio": savers["head"]["memory_ratio"],
        "head_speed_ratio": savers["head"]["speed_ratio"],
        "rank_balance": max(balances.values()),
        "checkpointed_memory_ratio": savers["step"]["memory_ratio"],
        "checkpointed_speed_ratio": savers["step"]["speed_ratio"],
        "models": models,
        "savers": savers,
        "rank_balance_by_ranks": balances,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each side (all cores)")
    parser.add_argument("--alone", nargs=2, metavar=("NAME", "TOKENS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        return alone(args.alone[0], int(args.alone[1]), args.threads)
    began = time.perf_counter()
    found = measure(args.quick, args.threads)
    found |= {"quick": args.quick, "threads": args.threads, "seconds": time.perf_counter() - began}
    if args.json is not None:
        machine = {"machine": asdict(probe()), "versions": versions() | installed(("trl",)), "load": os.getloadavg()}
        write_json(args.json, found | machine)
    print(json.dumps({name: value for name, value in found.items() if not isinstance(value, dict)}))


if __name__ == "__main__":
    main()
