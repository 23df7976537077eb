"""Chains, groups and small models for the learner's tests."""

from __future__ import annotations

import random
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rewards.types import Problem, Score
from rl import attention
from rollout.types import Chain, Group

VOCAB = 32


def small_model(arch: str = "llama", name: str = attention.NAME, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random model of two layers, width 32, with wide enough weights for its logits to differ."""
    shape: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3,
             "max_position_embeddings": 256, "tie_word_embeddings": True}  # fmt: skip
    config = AutoConfig.for_model(arch, **(shape | overrides))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=name)


def make_chain(
    ids: list[int],
    prompt_len: int,
    *,
    value: float | None = 0.0,
    inserted: tuple[int, ...] = (),
    logprobs: float = -3.0,
    versions: tuple[tuple[int, int], ...] | None = None,
    name: str = "c",
) -> Chain:
    """A chain of these ids; everything after the prompt is sampled but the `inserted` indices."""
    sampled = [t >= prompt_len and t not in inserted for t in range(len(ids))]
    score = Score(value, bool(value), "error" if value is None else "ok" if value else "wrong")
    return Chain(
        id=name,
        problem_id="p",
        token_ids=ids,
        prompt_len=prompt_len,
        sampled=sampled,
        sampler_logprobs=[logprobs if s else 0.0 for s in sampled],
        versions=list(versions or ((prompt_len, 0),)),
        finish_reason="stop",
        score=score,
    )


def make_group(chains: list[Chain], name: str = "p") -> Group:
    """A group of one problem."""
    return Group(Problem(name, "task", "?", 1, name), chains)


def random_groups(sizes: tuple[int, ...] = (4, 4), seed: int = 0, longest: int = 24) -> list[Group]:
    """Groups of random chains of unequal lengths, some with inserted tokens, rewards 0 and 1 in each group."""
    rng = random.Random(seed)

    def chain(g: int, k: int) -> Chain:
        prompt, length = rng.randint(1, 4), rng.randint(3, longest)
        ids = [rng.randrange(VOCAB) for _ in range(prompt + length)]
        inserted = (prompt + 1,) if rng.random() < 0.5 else ()
        logprobs = -rng.random() * 4
        return make_chain(ids, prompt, value=float(k % 2), inserted=inserted, logprobs=logprobs, name=f"{g}/{k}")

    return [make_group([chain(g, k) for k in range(size)], str(g)) for g, size in enumerate(sizes)]
