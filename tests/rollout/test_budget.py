"""Thinking caps: forced closes, answers, request counts, and caps cut from one long chain."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.errors import BadInput
from rollout.budget import MAX_RETRIES, Budgeted, cut_chain
from rollout.chain import bare_chain
from rollout.prompt import Template
from rollout.sampling import SamplingParams
from rollout.types import Chain
from tests.fakes import FakeSampler, word_tokenizer

BOS, EOS, OPEN, CLOSE = 1, 2, 3, 4
PROMPT = [BOS, 20, OPEN]
T, A = 30, 40  # a thinking token, an answer token
TEMPLATE = Template(word_tokenizer(), think=True, stop_ids=(EOS,))
FREE = (None, 4)  # a cap on thinking, tokens for the answer


def bare(prompt: list[int]) -> Chain:
    return bare_chain("c", "p", prompt)


def planned(thinking: int, answer: int, prompt: list[int] = PROMPT, end: int = EOS) -> FakeSampler:
    """A policy that thinks, closes and answers; after a forced close it answers at once."""

    def script(ids: list[int], params: SamplingParams) -> list[int]:
        made = ids[len(prompt) :]
        if CLOSE in made:
            given = len(made) - made.index(CLOSE) - 1
            left = [*[A] * (answer - given), end]
        else:
            left = [*[T] * (thinking - len(made)), CLOSE, *[A] * answer, end]
        return left + [T] * params.max_tokens

    return FakeSampler(script)


def asking(sampler: FakeSampler, answer: int, max_tokens: int = 100) -> Budgeted:
    return Budgeted(sampler, TEMPLATE, lambda segment: 50 + segment, 0.7, max_tokens, answer)


async def sample(
    sampler: FakeSampler, budget: tuple[int | None, int], max_tokens: int = 100, prompt: list[int] = PROMPT
) -> Chain:
    think, answer = budget
    return await asking(sampler, answer, max_tokens).sample(bare(prompt), think)


async def test_without_a_cap_it_is_one_request() -> None:
    sampler = planned(5, 2)
    chain = await sample(sampler, FREE)
    assert chain.response_ids == [T] * 5 + [CLOSE, A, A, EOS]
    assert [(p.max_tokens, p.seed, p.temperature) for _, p in sampler.requests] == [(100, 50, 0.7)]


async def test_done_within_the_cap_is_one_request() -> None:
    sampler = planned(5, 2)
    chain = await sample(sampler, (9, 4))
    assert (chain.response_ids, chain.finish_reason) == ([T] * 5 + [CLOSE, A, A, EOS], "stop")
    assert [p.max_tokens for _, p in sampler.requests] == [9]


async def test_closed_within_the_cap_gets_the_rest_of_its_answer() -> None:
    sampler = planned(5, 3)
    chain = await sample(sampler, (8, 4))
    assert (chain.response_ids, chain.finish_reason) == ([T] * 5 + [CLOSE, A, A, A, EOS], "stop")
    assert [(p.max_tokens, p.seed) for _, p in sampler.requests] == [(8, 50), (2, 51)]
    assert chain.inserted_count == 0


async def test_unclosed_at_the_cap_is_closed_by_force() -> None:
    sampler = planned(5, 2)
    chain = await sample(sampler, (3, 4))
    assert (chain.response_ids, chain.finish_reason) == ([T] * 3 + [CLOSE, A, A, EOS], "forced")
    assert chain.sampled[len(PROMPT) :] == [True] * 3 + [False] + [True] * 3
    assert [(len(ids), p.max_tokens, p.seed) for ids, p in sampler.requests] == [(3, 3, 50), (7, 4, 51)]


async def test_a_cap_of_0_closes_at_once() -> None:
    sampler = planned(5, 2)
    chain = await sample(sampler, (0, 4))
    assert chain.response_ids == [CLOSE, A, A, EOS]
    assert (chain.prompt_len, chain.inserted_count, chain.finish_reason) == (3, 1, "forced")
    assert len(sampler.requests) == 1


@pytest.mark.parametrize("think", [0, 3, 50])
async def test_an_answer_beyond_its_tokens_is_cut(think: int) -> None:
    chain = await sample(planned(5, 9), (think, 4))
    assert chain.finish_reason == "length"
    assert chain.response_ids[-5:] == [CLOSE, A, A, A, A]


async def test_an_end_inside_the_thinking_is_left_alone() -> None:
    sampler = FakeSampler(lambda ids, params: [T, T, EOS, T, T])
    chain = await sample(sampler, (5, 4))
    assert (chain.response_ids, chain.finish_reason) == ([T, T, EOS], "stop")
    assert TEMPLATE.unclosed(chain)


async def test_a_direct_prompt_has_nothing_to_cap() -> None:
    direct = [BOS, 20, OPEN, CLOSE]
    sampler = FakeSampler(lambda ids, params: [A, EOS])
    chain = await sample(sampler, (3, 4), prompt=direct)
    assert (chain.response_ids, sampler.requests[0][1].max_tokens) == ([A, EOS], 100)


async def test_the_answer_keeps_its_room_within_max_tokens() -> None:
    chain = await sample(planned(50, 2), (512, 4), max_tokens=10)
    assert chain.response_ids == [T] * 6 + [CLOSE, A, A, EOS]
    with pytest.raises(BadInput, match=r"budget.answer=10 leaves no room to think in 10 tokens"):
        await sample(planned(50, 2), (512, 10), max_tokens=10)


async def test_an_aborted_chain_is_not_closed() -> None:
    class Aborting(FakeSampler):
        async def sample(self, prompt_ids, params):
            return replace(await super().sample(prompt_ids, params), finish_reason="abort")

    chain = await sample(Aborting(lambda ids, params: [T] * 9), (3, 4))
    assert (chain.response_ids, chain.finish_reason) == ([T] * 3, "abort")


@given(
    thinking=st.integers(0, 12),
    answer=st.integers(0, 6),
    think=st.integers(0, 14),
    room=st.integers(1, 5),
    max_tokens=st.integers(6, 30),
)
def test_any_budget_keeps_its_promises(thinking: int, answer: int, think: int, room: int, max_tokens: int) -> None:
    chain = asyncio.run(sample(planned(thinking, answer), (think, room), max_tokens))
    cap = min(think, max_tokens - room)
    end = TEMPLATE.close_end(chain)
    assert end is not None
    inserted = chain.inserted_count
    assert chain.sampled_count <= max_tokens
    assert inserted == (thinking + 1 > cap)  # the close itself is sampled within the cap, or inserted
    assert sum(chain.sampled[3 : end - 1]) == min(thinking, cap)
    assert sum(chain.sampled[end:]) == min(answer + 1, room)
    ends = "forced" if inserted else "stop"
    assert chain.finish_reason == (ends if answer + 1 <= room else "length")


@given(thinking=st.integers(0, 12), answer=st.integers(0, 6), think=st.integers(0, 13), room=st.integers(1, 5))
def test_a_cap_cut_from_a_long_chain_is_what_the_cap_gives(thinking: int, answer: int, think: int, room: int) -> None:
    async def both() -> tuple[Chain, Chain, Chain]:
        uncapped = await sample(planned(thinking, answer), FREE)
        capped = await sample(planned(thinking, answer), (13, room))
        out = []
        for long in (uncapped, capped):
            sampler = planned(thinking, answer)
            piece = cut_chain(long, TEMPLATE, think) or long
            out.append(await asking(sampler, room).finish(piece, 1))
            assert len(sampler.requests) <= 1
        return out[0], out[1], await sample(planned(thinking, answer), (think, room))

    from_uncapped, from_capped, direct = asyncio.run(both())
    assert from_uncapped == from_capped == direct


async def test_a_chain_whose_thinking_was_over_is_not_cut() -> None:
    long = await sample(planned(5, 2), FREE)
    assert cut_chain(long, TEMPLATE, 6) is None
    five = cut_chain(long, TEMPLATE, 5)
    assert five is not None
    assert (five.response_ids, five.finish_reason) == ([T] * 5, "length")
    ended = await sample(FakeSampler(lambda ids, params: [T, T, EOS]), FREE)
    assert cut_chain(ended, TEMPLATE, 3) is None
    assert cut_chain(ended, TEMPLATE, 2) is not None


async def test_too_short_a_chain_cannot_be_cut() -> None:
    short = await sample(planned(50, 2), FREE, max_tokens=4)
    assert cut_chain(short, TEMPLATE, 4) == short
    with pytest.raises(ValueError, match="holds 4 thinking tokens, too few for a cap of 5"):
        cut_chain(short, TEMPLATE, 5)


def impatient(segment: int) -> FakeSampler:
    """A policy that thinks `segment` tokens, however much it has thought, then closes and answers."""
    return FakeSampler(lambda ids, params: [*[T] * segment, CLOSE, A, EOS] if CLOSE not in ids[3:] else [A, EOS])


async def extend(sampler: FakeSampler, think: int, enough: int, wait_ids: tuple[int, ...] = ()) -> Chain:
    asked = asking(sampler, 4)
    chain = await asked.sample(bare(PROMPT), think)
    satisfied = lambda text: text.split().count(TEMPLATE.tokenizer.decode([T])) >= enough  # noqa: E731
    return await asked.extend(chain, think, satisfied, wait_ids)


async def test_closes_are_taken_back_until_it_is_satisfied() -> None:
    sampler = impatient(2)
    chain = await extend(sampler, think=20, enough=5)
    assert (chain.response_ids, chain.finish_reason) == ([T] * 6 + [CLOSE, A, EOS], "stop")
    assert all(chain.sampled[3:])
    assert [(len(ids), p.max_tokens, p.seed) for ids, p in sampler.requests] == [(3, 20, 50), (5, 18, 52), (7, 16, 53)]


async def test_one_that_is_satisfied_is_left_alone() -> None:
    sampler = impatient(2)
    assert (await extend(sampler, think=20, enough=1)).response_ids == [T, T, CLOSE, A, EOS]
    assert len(sampler.requests) == 1


async def test_an_extension_ends_at_the_budget() -> None:
    chain = await extend(impatient(2), think=5, enough=99)
    assert (chain.response_ids, chain.finish_reason) == ([T] * 5 + [CLOSE, A, EOS], "forced")
    assert chain.sampled[3:] == [True] * 5 + [False, True, True]


async def test_a_chain_that_thought_past_the_budget_is_cut_to_it() -> None:
    asked = asking(planned(50, 2), answer=4, max_tokens=12)
    chain = await asked.sample(bare(PROMPT), None)
    assert chain.response_ids == [T] * 12
    longer = await asked.extend(chain, None, lambda _: False)
    assert longer.response_ids == [T] * 8 + [CLOSE, A, A, EOS]


async def test_what_is_inserted_to_wait_is_not_sampled() -> None:
    wait = 50
    chain = await extend(impatient(2), think=20, enough=3, wait_ids=(wait,))
    assert chain.response_ids == [T, T, wait, T, T, CLOSE, A, EOS]
    assert chain.sampled[3:] == [True, True, False, True, True, True, True, True]


async def test_a_policy_that_only_closes_gets_its_way() -> None:
    sampler = impatient(0)
    assert (await extend(sampler, think=20, enough=1)).response_ids == [CLOSE, A, EOS]
    assert len(sampler.requests) == MAX_RETRIES + 1
