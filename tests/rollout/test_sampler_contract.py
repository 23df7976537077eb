"""One contract, every sampler: a fake, transformers, and vLLM over HTTP answer the same questions alike."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards.errors import BadInput
from rollout.client import ServerControl
from rollout.sampling import SamplingParams
from rollout.types import Sampler
from tests.conftest import VllmServer
from tests.fakes import FakeSampler

CONTEXT = 1024
EOS = 258


@dataclass
class Backend:
    """A sampler, and the log-probabilities its model really gives."""

    sampler: Sampler
    model: Any  # a FakeSampler, or the transformers model on the plain path

    def logprobs(self, ids: Sequence[int], temperature: float) -> np.ndarray:
        """ln p of ids[1:] given what stands before each, [T - 1]."""
        if isinstance(self.model, FakeSampler):
            return np.array([self.model.logprobs(a, temperature)[b] for a, b in itertools.pairwise(ids)])
        import torch

        with torch.inference_mode():
            logits = self.model(torch.tensor([list(ids)])).logits[0, :-1] / temperature
            return logits.log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


@pytest.fixture(scope="module")
def plain_model(tiny_llama: Path) -> Iterator[Any]:
    import torch
    from transformers import AutoModelForCausalLM

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    torch.set_num_threads(threads)


REAL = ["transformers", pytest.param("vllm", marks=pytest.mark.vllm)]


@pytest.fixture(params=["fake", *REAL])
def make_backend(request: pytest.FixtureRequest) -> Callable[[], Backend]:
    """Makes the sampler within the test's event loop; what is slow is started here, outside of it."""
    if request.param == "fake":
        fake = FakeSampler(vocab=261, context=CONTEXT)
        return lambda: Backend(fake, fake)
    model = request.getfixturevalue("plain_model")
    if request.param == "transformers":
        from transformers import AutoModelForCausalLM

        from rollout.transformers_sampler import TransformersSampler

        own = AutoModelForCausalLM.from_pretrained(request.getfixturevalue("tiny_llama"))
        # padding is an end of sequence throughout
        return lambda: Backend(TransformersSampler(own, context=CONTEXT, pad_id=EOS), model)
    from rollout.client import VllmClient

    server = request.getfixturevalue("vllm_server")
    version = asyncio.run(served_version(server))

    def connect() -> Backend:
        client = VllmClient([server.url], server.key, context=CONTEXT)
        client.version = version
        return Backend(client, model)

    return connect


async def served_version(server: VllmServer) -> int:
    """The label of the server's weights: other tests may have pushed."""
    control = ServerControl(server.url, server.key)
    version = await control.weight_version()
    await control.aclose()
    return version


@pytest.fixture
async def backend(make_backend: Callable[[], Backend]) -> AsyncIterator[Backend]:
    made = make_backend()
    yield made
    await made.sampler.aclose()


def params(**options: Any) -> SamplingParams:
    settings: dict[str, Any] = {"max_tokens": 16, "stop_ids": (EOS,), "seed": 11} | options
    return SamplingParams(**settings)


PROMPT = [257, 97, 98, 99]


async def test_the_token_cap_is_length(backend: Backend) -> None:
    done = await backend.sampler.sample(PROMPT, params(stop_ids=()))
    assert (len(done.token_ids), len(done.logprobs), done.finish_reason) == (16, 16, "length")


@pytest.mark.parametrize("which", [0, 1])
async def test_every_stop_id_ends_a_chain_and_is_its_last_token(backend: Backend, which: int) -> None:
    free = await backend.sampler.sample(PROMPT, params(stop_ids=()))
    at = next(t for t in range(4 + which, 16) if free.token_ids[t] not in free.token_ids[:t])
    never = next(i for i in range(100, 200) if i not in free.token_ids)
    stops = (free.token_ids[at], never) if which == 0 else (never, EOS, free.token_ids[at])
    done = await backend.sampler.sample(PROMPT, params(stop_ids=stops))
    assert done.token_ids == free.token_ids[: at + 1]
    assert done.finish_reason == "stop"
    assert done.logprobs[-1] == pytest.approx(backend.logprobs(PROMPT + done.token_ids, 1.0)[-1], abs=1e-5)


async def test_only_stop_ids_stop(backend: Backend) -> None:
    """The end-of-sequence token of the model's files goes by where it is not asked for, also where it pads."""
    after_eos = [*PROMPT, EOS, EOS, 97]
    done = await backend.sampler.sample(after_eos, params(stop_ids=(), max_tokens=64, temperature=2.0))
    assert done.finish_reason == "length"
    assert len(done.token_ids) == 64


async def test_an_end_of_sequence_that_pads_is_sampled_and_scored(backend: Backend) -> None:
    """pad == eos: hot sampling hits it soon, as the last token and with its log-probability."""
    requests = [params(max_tokens=200, temperature=2.0, seed=seed) for seed in range(24)]
    answers = await asyncio.gather(*(backend.sampler.sample(PROMPT, p) for p in requests))
    ended = [done for done in answers if done.finish_reason == "stop"]
    assert ended
    for done in answers:
        assert (EOS in done.token_ids) == (done.finish_reason == "stop")
        assert done.token_ids.count(EOS) == (done.token_ids[-1] == EOS)
        assert len(done.logprobs) == len(done.token_ids)
    expected = backend.logprobs(PROMPT + ended[0].token_ids, 2.0)[-1]
    assert ended[0].logprobs[-1] == pytest.approx(expected, abs=1e-5)


async def test_mixed_lengths_in_a_batch_are_as_alone(backend: Backend) -> None:
    prompts = [[257, *range(97, 97 + n)] for n in (1, 40, 7, 19)]
    together = await asyncio.gather(*(backend.sampler.sample(p, params(seed=i)) for i, p in enumerate(prompts)))
    for i, prompt in enumerate(prompts):
        alone = await backend.sampler.sample(prompt, params(seed=i))
        assert alone.token_ids == together[i].token_ids
        np.testing.assert_allclose(alone.logprobs, together[i].logprobs, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
async def test_logprobs_are_those_of_the_plain_model_at_the_temperature(backend: Backend, temperature: float) -> None:
    prompts = [PROMPT, [257, *range(100, 200)]]
    for prompt in prompts:
        done = await backend.sampler.sample(prompt, params(temperature=temperature, max_tokens=48, stop_ids=()))
        expected = backend.logprobs(prompt + done.token_ids, temperature)[len(prompt) - 1 :]
        np.testing.assert_allclose(done.logprobs, expected, atol=1e-5)


async def test_a_seed_is_a_sample(backend: Backend) -> None:
    first, again, other = [await backend.sampler.sample(PROMPT, params(seed=seed, stop_ids=())) for seed in (3, 3, 4)]
    assert first.token_ids == again.token_ids
    assert first.token_ids != other.token_ids


async def test_greedy_repeats_whatever_the_seed_and_takes_the_likeliest(backend: Backend) -> None:
    answers = [await backend.sampler.sample(PROMPT, params(seed=s, temperature=0.0, stop_ids=())) for s in (1, 2)]
    assert answers[0].token_ids == answers[1].token_ids
    first = answers[0].token_ids[0]
    best = max(backend.logprobs([*PROMPT, token], 1.0)[-1] for token in range(261))
    assert backend.logprobs([*PROMPT, first], 1.0)[-1] == pytest.approx(best, abs=1e-6)


async def test_generation_config_has_no_say(backend: Backend) -> None:
    """The model's POISON (temperature 0.01, top_k 1) would give one first token; its own distribution gives many."""
    requests = [params(seed=seed, max_tokens=1, stop_ids=(), temperature=1.0) for seed in range(24)]
    answers = await asyncio.gather(*(backend.sampler.sample(PROMPT, p) for p in requests))
    assert len({done.token_ids[0] for done in answers}) > 3


async def test_what_does_not_fit_the_context_is_refused(backend: Backend) -> None:
    fitting = [257] * (CONTEXT - 2)
    done = await backend.sampler.sample(fitting, params(max_tokens=2, stop_ids=()))
    assert len(done.token_ids) == 2
    for prompt, tokens in [(fitting, 3), ([257] * (CONTEXT + 5), 1), (PROMPT, CONTEXT)]:
        with pytest.raises(BadInput, match=f"do not fit the context of {CONTEXT}"):
            await backend.sampler.sample(prompt, params(max_tokens=tokens))


async def test_an_empty_prompt_is_refused(backend: Backend) -> None:
    with pytest.raises(BadInput, match="empty"):
        await backend.sampler.sample([], params())


async def test_completions_carry_the_version_of_their_weights(backend: Backend) -> None:
    done = await backend.sampler.sample(PROMPT, params())
    assert done.version == backend.sampler.version


@pytest.mark.parametrize("make_backend", REAL, indirect=True)
@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
async def test_each_way_to_truncate_is_honoured(backend: Backend, options: dict[str, float]) -> None:
    """Each alone leaves the likeliest token, so the sample is the greedy one."""
    greedy = await backend.sampler.sample(PROMPT, params(temperature=0.0, stop_ids=()))
    done = await backend.sampler.sample(PROMPT, params(stop_ids=(), **options))
    assert done.token_ids == greedy.token_ids


@pytest.mark.parametrize("make_backend", REAL, indirect=True)
@pytest.mark.parametrize("penalty", ["frequency_penalty", "presence_penalty", "repetition_penalty"])
async def test_penalties_are_honoured(backend: Backend, penalty: str) -> None:
    """Seen tokens lose weight, so that the log-probabilities differ from the plain model's."""
    done = await backend.sampler.sample(PROMPT, params(temperature=0.05, stop_ids=(), **{penalty: 2.0}))
    plain = backend.logprobs(PROMPT + done.token_ids, 0.05)[len(PROMPT) - 1 :]
    assert np.abs(done.logprobs - plain).max() > 0.1
