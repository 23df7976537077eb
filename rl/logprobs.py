"""Log-probabilities of given tokens, the only place where the learner divides logits by the temperature."""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 2**25  # logits that `head_logprobs` makes at once (128 MiB in fp32), and as many probabilities
KEPT_ELEMENTS = 2**26  # probabilities that may wait for the backward pass (256 MiB); more are made a second time there


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
    kept_elements: int = KEPT_ELEMENTS,
) -> tuple[Tensor, Tensor]:
    """token_logprobs of the output head; hidden [N, H], weight [V, H], targets [N], bias [V] -> [N], [N].
    The head runs in fp32: bf16 logits are too coarse for ratios. Beyond `kept_elements` it never holds [N, V]."""
    if bias is not None:  # one more input that is always 1
        hidden, weight = F.pad(hidden, (0, 1), value=1.0), torch.cat([weight, bias.unsqueeze(1)], dim=1)
    rows, keep = max(1, chunk_elements // len(weight)), len(targets) * len(weight) <= kept_elements
    with torch.autocast(hidden.device.type, enabled=False):
        # Weights as the server holds them (rounded to the compute dtype), the product in fp32.
        scaled, matrix = upcast(hidden) / temperature, upcast(weight.to(hidden.dtype))
        apply = cast("Callable[..., tuple[Tensor, Tensor]]", _Head.apply)
        return apply(scaled, matrix, targets, rows, keep and torch.is_grad_enabled())


class _Head(torch.autograd.Function):
    """Some rows at a time: logits z = hidden @ matrix.T and p = softmax(z). The gradient of ln p[target] by z is
    onehot(target) - p, so the backward pass needs p alone: kept, or made again from z and ln sum exp z."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, matrix: Tensor, targets: Tensor, rows: int, keep: bool) -> Any:
        out = hidden.new_empty(3, len(targets), 1)
        logits, probs = hidden.new_empty(2, min(rows, len(targets)), len(matrix))
        kept = hidden.new_empty(len(targets) if keep else 0, len(matrix))
        for start in range(0, len(targets), rows):
            part = slice(start, min(start + rows, len(targets)))
            z = torch.mm(hidden[part], matrix.T, out=logits[: part.stop - start])
            top = z.amax(1, keepdim=True)
            p = torch.exp(z.sub_(top), out=kept[part] if keep else probs[: len(z)])
            total = p.sum(1, keepdim=True)
            log_total, below = total.log(), torch.linalg.vecdot(p.div_(total), z).unsqueeze(1)
            picked = z.gather(1, targets[part].unsqueeze(1)) - log_total
            out[:, part] = torch.stack([picked, log_total - below, log_total + top])
        logprobs, entropy, log_sums = out.squeeze(2).unbind()
        ctx.save_for_backward(hidden, matrix, targets, log_sums, kept)
        ctx.rows = rows
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> Any:
        hidden, matrix, targets, log_sums, kept = ctx.saved_tensors
        by_hidden, by_matrix = torch.empty_like(hidden), torch.zeros_like(matrix) if ctx.needs_input_grad[1] else None
        buffer = hidden.new_empty(min(ctx.rows, len(targets)), len(matrix))
        for start in range(0, len(targets), ctx.rows):
            part = slice(start, min(start + ctx.rows, len(targets)))
            p, by_z, scale = kept[part], buffer[: part.stop - start], grad[part].unsqueeze(1)
            if not len(p):
                p = torch.mm(hidden[part], matrix.T, out=by_z).sub_(log_sums[part, None]).exp_()
            torch.mul(p, -scale, out=by_z).scatter_add_(1, targets[part].unsqueeze(1), scale)
            torch.mm(by_z, matrix, out=by_hidden[part])
            if by_matrix is not None:
                by_matrix.addmm_(by_z.T, hidden[part])
        return by_hidden, by_matrix, None, None, None


def upcast(values: Tensor) -> Tensor:
    """The same in fp32 at least: bf16 is too coarse for differences and sums."""
    return values if values.dtype == torch.float64 else values.float()
