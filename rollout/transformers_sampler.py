"""The Sampler without vLLM: batched generation with transformers, bit-exact on repetition: what is asked at once
is batched by arrival and length alone, each row has its own draws, and one thread runs one batch at a time."""

import asyncio
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rewards.errors import Fault
from rollout.client import check_fits
from rollout.sampling import SamplingParams
from rollout.types import Completion, FinishReason


@dataclass
class _Row:
    """One request on its way: its draws, and what it has sampled so far."""

    prompt: list[int]
    params: SamplingParams
    future: asyncio.Future[Completion]
    uniforms: list[float] = field(default_factory=list)  # [max_tokens] in [0, 1)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def going(self) -> bool:
        return self.finish_reason is None and not self.future.cancelled()


class TransformersSampler:
    """A rollout.types.Sampler over a transformers causal language model, which it owns from then on. `context` and
    `max_batch` are in tokens and in rows that decode together, `pad_id` is any id of the vocabulary."""

    def __init__(self, model: Any, *, context: int, pad_id: int, max_batch: int = 64) -> None:
        self.version = -1
        self.context = context
        self._model = model.eval().requires_grad_(False)
        self._pad_id, self._max_batch = pad_id, max_batch
        self._pending: list[_Row] = []
        self._flusher: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "sampler")  # its own: torch's thread pool is per calling thread

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        """Sample one completion. Raises BadInput as the Protocol says, Fault where the model gives no distribution."""
        check_fits(len(prompt_ids), params.max_tokens, self.context)
        row = _Row(list(prompt_ids), params, asyncio.get_running_loop().create_future())
        self._pending.append(row)
        self._flusher = self._flusher or asyncio.create_task(self._flush())
        return await row.future

    def load(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy and label weights (HF names). Raises Fault for a name, a shape or a moment that is wrong, or a gap."""
        if self._flusher is not None:
            raise Fault("weights were pushed while chains were being sampled; wait for them first")
        own = dict(self._model.named_parameters(remove_duplicate=False))
        stale = {parameter.data_ptr(): name for name, parameter in self._model.named_parameters()}  # a tied head once
        for name, tensor in tensors:
            if name not in own or own[name].shape != tensor.shape:
                raise Fault(f"weight {name} {tuple(tensor.shape)} does not fit the sampler's model")
            own[name].copy_(tensor)
            stale.pop(own[name].data_ptr(), None)
        if stale:
            raise Fault(f"the push left out {', '.join([*stale.values()][:3])}: {len(stale)} weights are stale")
        self.version = version

    async def aclose(self) -> None:
        """Cancel what is under way and stop the thread."""
        if self._flusher is not None:
            self._flusher.cancel()
            await asyncio.gather(self._flusher, return_exceptions=True)
        for row in self._pending:  # of a flush that was cancelled before it began
            row.future.cancel()
        self._thread.shutdown(wait=True)

    async def _flush(self) -> None:
        """Batches until nothing is left: requests are gathered until the event loop has been idle for some turns."""
        batch: list[_Row] = []
        try:
            while self._pending:
                seen = [len(self._pending)]
                while len(seen) < 4 or len({*seen[-4:]}) > 1:
                    await asyncio.sleep(0)
                    seen.append(len(self._pending))
                batch, self._pending = self._pending, []
                batch.sort(key=lambda row: len(row.prompt))  # alike in length: less padding
                for start in range(0, len(batch), self._max_batch):
                    rows = [row for row in batch[start : start + self._max_batch] if row.going]
                    await asyncio.get_running_loop().run_in_executor(self._thread, self._generate, rows)
                    for row in rows:
                        if row.finish_reason is not None and not row.future.done():
                            done = Completion(row.token_ids, row.logprobs, row.finish_reason, self.version)
                            row.future.set_result(done)
        except Exception as error:
            for row in batch + self._pending:
                if not row.future.done():
                    row.future.set_exception(error)
        finally:
            for row in batch + self._pending:
                row.future.cancel()  # does nothing to one that is done
            self._pending, self._flusher = [], None

    @torch.inference_mode()
    def _generate(self, rows: list[_Row]) -> None:
        """Decode rows [B] together until each has finished."""
        if not rows:
            return
        for row in rows:
            generator = torch.Generator().manual_seed(row.params.seed)
            row.uniforms = torch.rand(row.params.max_tokens, generator=generator, dtype=torch.float64).tolist()
        cache = transformers.DynamicCache(config=self._model.config)
        prompts = [torch.tensor(row.prompt, device=self._model.device) for row in rows]
        masks = [torch.ones_like(prompt) for prompt in prompts]
        # Both [B, T]; padded on the left, so that all rows go on at the same column.
        ids = pad_sequence(prompts, batch_first=True, padding_value=self._pad_id, padding_side="left")
        mask = pad_sequence(masks, batch_first=True, padding_side="left")
        while True:
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "past_key_values": cache}
            tokens = sample_rows(self._model(**inputs, use_cache=True, logits_to_keep=1).logits[:, -1], rows)
            going = [b for b, row in enumerate(rows) if row.going]
            if not going:
                return
            if len(going) <= 0.75 * len(rows):  # not at every row that ends: each time costs a copy of the cache
                keep = torch.tensor(going, dtype=torch.long, device=mask.device)
                rows, tokens, mask = [rows[b] for b in going], tokens[keep], mask[keep]
                cache.batch_select_indices(keep)
            ids = tokens[:, None]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=-1)


def sample_rows(logits: Tensor, rows: list[_Row]) -> Tensor:
    """Draw the next token of each row that is still going and record it; returns ids [B] from logits [B, V]."""
    logprobs = processed_logprobs(logits.float(), rows)  # [B, V]
    cumulative = logprobs.double().exp().cumsum(-1)  # float64: u reaches tokens rarer than float32's 6e-8
    total = cumulative[:, -1:]
    if not torch.isfinite(total).all():
        raise Fault("the model gives NaN or infinite logits; the weights are broken, or the learning rate is too high")
    draws = [0.0 if row.finish_reason else row.uniforms[len(row.token_ids)] for row in rows]
    u = torch.tensor(draws, dtype=torch.float64, device=logits.device)[:, None] * total
    drawn = torch.searchsorted(cumulative, torch.minimum(u, total.nextafter(total * 0)), right=True)[:, 0]
    greedy = torch.tensor([row.params.temperature == 0 for row in rows], device=logits.device)
    tokens = torch.where(greedy, logprobs.argmax(-1), drawn)
    chosen = logprobs.gather(-1, tokens[:, None])[:, 0]
    for row, token, logprob in zip(rows, tokens.tolist(), chosen.tolist(), strict=True):
        if row.finish_reason is None:
            row.token_ids.append(token)
            row.logprobs.append(logprob)
            if token in row.params.stop_ids:
                row.finish_reason = "stop"
            elif len(row.token_ids) == row.params.max_tokens:
                row.finish_reason = "length"
    return tokens


def processed_logprobs(logits: Tensor, rows: list[_Row]) -> Tensor:
    """Log-probabilities [B, V] of the distribution that is sampled from: what vLLM calls `processed_logprobs`. Its
    order of steps too: penalties (repetition over prompt and completion, the others over the completion), temperature
    (1 where it is 0: greedy takes the argmax, which survives every cut), min_p, top_k, top_p."""
    temperatures = torch.tensor([row.params.temperature or 1.0 for row in rows], device=logits.device)
    scaled = logits / temperatures[:, None]
    for b, row in enumerate(rows):
        params = row.params
        if params.plain:
            continue
        seen = torch.tensor([row.prompt + row.token_ids], device=logits.device)
        scores = transformers.RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(seen, logits[b, None])
        counts = torch.bincount(seen[0, len(row.prompt) :], minlength=logits.shape[1])
        scores = scores - params.frequency_penalty * counts - params.presence_penalty * (counts > 0)
        if params.temperature > 0:
            scores = transformers.MinPLogitsWarper(params.min_p)(None, scores / params.temperature)
            scores = transformers.TopKLogitsWarper(params.top_k)(None, scores) if params.top_k > 0 else scores
            scores = transformers.TopPLogitsWarper(params.top_p)(None, scores) if params.top_p < 1 else scores
        scaled[b] = scores[0]
    return scaled.log_softmax(-1)
