"""Log-probabilities of given tokens, the only place where the learner divides logits by the temperature."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 2**26  # logits that may exist at once in `head_logprobs` (256 MiB in fp32)


def token_logprobs(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """ln softmax(logits / temperature)[target] and the entropy (nats, without gradient); [N, V], [N] -> [N], [N]."""
    scaled = upcast(logits) / temperature
    all_logprobs = scaled.log_softmax(-1)
    picked = all_logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    with torch.no_grad():
        entropy = torch.special.entr(all_logprobs.exp()).sum(-1)
    return picked, entropy


def head_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float,
    bias: Tensor | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> tuple[Tensor, Tensor]:
    """token_logprobs of the output head; hidden [N, H], weight [V, H], targets [N], bias [V] -> [N], [N].
    The head runs in fp32: bf16 logits are too coarse for ratios. More than `chunk_elements` logits are made chunk by
    chunk, and again in the backward pass."""

    def head(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        # Weights as the server holds them (rounded to the compute dtype), the product in fp32.
        matrix, offset = upcast(weight.to(hidden.dtype)), None if bias is None else upcast(bias.to(hidden.dtype))
        with torch.autocast(hidden.device.type, enabled=False):
            return token_logprobs(F.linear(upcast(hidden), matrix, offset), targets, temperature)

    rows = max(1, chunk_elements // weight.shape[0])
    if len(targets) <= rows:
        return head(hidden, targets)
    parts = [
        checkpoint(head, part, wanted, use_reentrant=False, preserve_rng_state=False)
        for part, wanted in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    ]
    return torch.cat([logprobs for logprobs, _ in parts]), torch.cat([entropy for _, entropy in parts])


def upcast(values: Tensor) -> Tensor:
    """The same in fp32 at least: bf16 is too coarse for differences and sums."""
    return values if values.dtype == torch.float64 else values.float()
