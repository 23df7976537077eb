"""What flows through verification: a Problem goes in, a Score comes out. Final names; see docs/rewards.md."""

from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

Split: TypeAlias = Literal["train", "val", "test"]
Message: TypeAlias = dict[str, str]
Prompt: TypeAlias = str | list[Message]
"""Plain text, or chat messages ({"role", "content"})."""

Status: TypeAlias = Literal["ok", "wrong", "unparsed", "truncated", "rejected", "error", "skipped"]
STATUSES: tuple[Status, ...] = ("ok", "wrong", "unparsed", "truncated", "rejected", "error", "skipped")
"""ok/wrong: judged. unparsed: no answer found. truncated: cut by the length cap before an answer.
rejected: the *text* made the verifier hit a limit, twice (value 0, counted in the baseline).
error: *our* failure (value None, left out of the advantages). skipped: the reward returned None (left out)."""


@dataclass(frozen=True)
class Problem:
    """One problem with a checkable answer.
    `key` is the canonical content (countdown: sorted numbers and target); splits are a stable hash of (task, key)."""

    id: str
    task: str
    prompt: Prompt
    answer: Any  # any JSON value
    key: str
    difficulty: float = 0.0
    subtask: str = ""
    reward: Any = None  # a reward spec of the row's own; None = the task's
    meta: dict[str, Any] = field(default_factory=dict)  # further JSON fields of the row


@dataclass(frozen=True)
class Score:
    """A verdict on one chain.
    `correct` is set by the primary verifier alone (pass@k, curricula read it); advantages read `value`."""

    value: float | None
    correct: bool
    status: Status
    parts: dict[str, float] = field(default_factory=dict)  # named components of the value
    id: str = ""  # the chain's id, as it was given
    detail: str = ""  # the verifier's reason, in words

    @property
    def counts(self) -> bool:
        """Whether the sample takes part in baselines and advantages."""
        return self.value is not None


RewardResult: TypeAlias = float | bool | Score | None


@dataclass(frozen=True)
class Extras:
    """What a reward with `takes_extras = True` gets as its third argument."""

    completion_ids: list[int] | None = None
    step: int = 0
    thinking_tokens: int | None = None  # sampled before the close; all that were sampled where nothing was closed
    truncated: bool = False  # cut by the length cap; only a reward with `scores_truncated = True` sees such a response


class Reward(Protocol):
    """A reward: `def my_reward(response, problem)`, sync or async.
    bool = value and correctness; float = value, correct when >= 1; None = skip this sample.
    A reward that can judge a response cut by the length cap sets `scores_truncated = True` on itself."""

    def __call__(self, response: str, problem: Problem) -> RewardResult | Awaitable[RewardResult]: ...
