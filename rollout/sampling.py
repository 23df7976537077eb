"""Every sampling field, explicit, in one place: no default of a server or of a generation_config ever applies."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingParams:
    """One request's sampling settings; every field travels in every request of both samplers."""

    max_tokens: int
    stop_ids: tuple[int, ...]  # all of them end a chain; the one that was hit is part of the completion
    seed: int
    temperature: float = 1.0  # 0 = greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 = off
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0

    @property
    def plain(self) -> bool:
        """Whether temperature alone shapes the distribution: what training asks for."""
        return self == SamplingParams(self.max_tokens, self.stop_ids, self.seed, self.temperature)


def request_seed(run_seed: int, step: int, problem: str, k: int, segment: int = 0) -> int:
    """The seed of one request, in [0, 2**31): a stable hash, so that there is no sampling RNG to save."""
    text = f"{run_seed}|{step}|{problem}|{k}|{segment}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") % 2**31
