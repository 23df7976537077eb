"""What sampler and learner must agree on: how far apart their log-probabilities are and what a pattern of it means,
the changes of weights that bring it out, and the ids that end a turn.

Used by `ponder selftest`; docs/decisions/selftest.md says why these comparisons and no others.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rl.config import Config
from rl.flops import is_adapter
from rl.memory import count_parameters
from rollout.prompt import find_stop_ids, read_json

SMALL_MODEL = 10_000_000  # parameters
TEMPERATURES = (0.7, 1.0)

Gaps = dict[str, list[float]]
"""Kind of prompt (short, long, repeated) -> mean |server - learner| of the worst chain at TEMPERATURES, nats."""

CAUSES = {
    "broken": "the sampler's log-probabilities are not all numbers: weights arrived in part, or overflow in this dtype",
    "temperature": "{short:.1e} off at T = 0.7 and nothing at T = 1.0: one side ignores the temperature; the server "
    "must run with --logprobs-mode processed_logprobs",
    "push": "{short:.1e} off everywhere, and a push leaves the sampler's answers as they were: its weights do not "
    "arrive",
    "head": "{short:.1e} off everywhere, and answers stay as they were when a push changes the output head alone: a "
    "stale output head, which a push must rebuild",
    "everything": "{short:.1e} off everywhere, though the output head follows a push: some other tensor does not "
    "arrive, or dtype or config.json differ",
    "long": "{long:.1e} off on new long prompts and nothing on short ones: positions differ (rope scaling, sliding "
    "window)",
    "cache": "{repeated:.1e} off on a long prompt that was sent before and nothing on new ones: a stale prefix cache "
    "holds keys and values of older weights; a push must drop it",
}


def diagnose(gaps: Gaps, bound: float) -> str | None:
    """The cause that a pattern of gaps points to, a key of CAUSES; None where nothing is beyond the bound."""
    if math.isnan(worst(gaps.values())):
        return "broken"
    if worst(gaps["short"]) > bound:
        return "everything" if gaps["short"][TEMPERATURES.index(1.0)] > bound else "temperature"
    if worst(gaps["long"]) > bound:
        return "long"
    return "cache" if worst(gaps["repeated"]) > bound else None


def explain(cause: str, gaps: Gaps) -> str:
    return CAUSES[cause].format(**{kind: worst(each) for kind, each in gaps.items()})


def worst(values: Iterable[Any]) -> float:
    """The largest of numbers, or of lists of them; NaN where there is one, which Python's max may lose."""
    return float(np.max(list(values)))


def parity_bound(config: Config) -> float:
    """Bound of mean |difference| by dtype and size, nats."""
    if config.model.dtype == "bfloat16":
        return 0.02
    return 1e-5 if count_parameters(config.model.path) < SMALL_MODEL else 1e-4


@contextlib.contextmanager
def restored(weights: Iterable[Tensor]) -> Iterator[None]:
    """Give some of the learner's weights back exactly at the end."""
    kept = [(p, p.detach().clone()) for p in weights]
    try:
        yield
    finally:
        with torch.no_grad():
            for p, old in kept:
                p.copy_(old)


def adapters(policy: nn.Module) -> dict[str, list[Tensor]]:
    """The parameters of each LoRA adapter by the name of the layer that it sits on; none without LoRA."""
    found: dict[str, list[Tensor]] = {}
    for name, p in policy.named_parameters():
        if is_adapter(name):
            found.setdefault(name.partition(".lora_")[0], []).append(p)
    return found


@torch.no_grad()
def add_noise(weights: Iterable[Tensor], size: float, seed: int) -> None:
    """Noise on some parameters, relative to their mean magnitude; on those that are all zero (biases) absolute."""
    generator = torch.Generator().manual_seed(seed)
    for p in weights:
        noise = torch.randn(p.shape, generator=generator).to(p)
        p.add_(noise * size * (float(p.abs().mean()) or 1.0))


@torch.no_grad()
def flip_head(policy: Any, prompt: list[int]) -> None:
    """Turn the output head's rows around, but for those of the prompt's tokens."""
    head = policy.get_output_embeddings().weight
    rows = torch.ones(len(head), dtype=torch.bool, device=head.device)
    rows[prompt] = False
    head[rows] *= -1


def weights_sum(policy: nn.Module) -> float:
    """A number that moves when any weight does."""
    return float(sum(p.detach().double().sum() for p in policy.parameters()))


def expected_stop_ids(tokenizer: Any, path: Path) -> dict[int, str]:
    """Each id that ends a turn by a model's files or by what its chat template writes, and where that is said."""
    found = dict.fromkeys(find_stop_ids(tokenizer), "the tokenizer")
    for name in ("config.json", "generation_config.json"):
        found = dict.fromkeys(find_stop_ids(tokenizer, read_json(path / name)), name) | found
    written = written_end_of_turn(tokenizer)
    return found if written is None else {written: "the chat template"} | found


def written_end_of_turn(tokenizer: Any) -> int | None:
    """The special token that a chat template writes behind an assistant's words, or None where it writes none."""
    words = "forty-two"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": words}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # no template, or one that takes no assistant's words: it says nothing about their end
        return None
    _, found, tail = text.rpartition(words)
    ids = tokenizer.encode(tail.lstrip(), add_special_tokens=False) if found else []
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None
