"""What a task is: problems as a pure function of (seed, index, split), split by content."""

from __future__ import annotations

import difflib
import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, replace
from typing import Any, ClassVar, Protocol, get_args

from rewards.errors import BadInput
from rewards.types import Problem, Split

SPLITS: tuple[Split, ...] = get_args(Split)
MAX_DRAWS = 20_000
"""Draws after which a generator says that a split holds nothing."""


class Task(Protocol):
    """A source of problems."""

    @property
    def name(self) -> str:
        """The task string it was loaded from."""
        ...

    @property
    def reward(self) -> Any:
        """Spec of the default reward; None for a mixture, where each problem names its own."""
        ...

    @property
    def rewards(self) -> list[Any]:
        """Every reward spec that its problems may name."""
        ...

    def problem(self, index: int, split: Split) -> Problem:
        """Problem `index` >= 0 of a split. Raises BadInput where the split has none."""
        ...

    def size(self, split: Split) -> int | None:
        """Problems in the split; None for a generator, which never ends."""
        ...

    def gold(self, problem: Problem) -> str:
        """A response to one of its problems that must be scored correct."""
        ...


def split_of(task: str, key: str) -> Split:
    """The split that a problem's content belongs to: a stable hash mod 10, 0 test, 1 val, the rest train."""
    digest = hashlib.blake2b(f"{task}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    bucket = int.from_bytes(digest, "big") % 10
    return {0: "test", 1: "val"}.get(bucket, "train")  # type: ignore[return-value]


def nearest(wrong: str, known: list[str]) -> str:
    """A hint for a misspelt name: the closest known one, else all of them."""
    hits = difflib.get_close_matches(wrong, known, n=1)
    return f"did you mean {hits[0]!r}?" if hits else f"known: {', '.join(known)}"


@dataclass(frozen=True)
class Range:
    """An inclusive range of integers, written `3` or `3-5`."""

    low: int
    high: int

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"

    def draw(self, rng: random.Random) -> int:
        return rng.randint(self.low, self.high)


def about(help: str, bounds: tuple[int, int] | None = None, choices: str = "") -> dict[str, Any]:
    """Metadata of a task parameter: its meaning, its bounds or its blank-separated choices."""
    return {"help": help, "bounds": bounds, "choices": choices.split()}


STYLE = about("`words`: tokens apart by blanks, for word-level models; `plain`: in English", choices="words plain")


@dataclass(frozen=True)
class Generator(ABC):
    """A task that makes its problems up. Subclasses add parameters as fields and say how to draw one problem."""

    base: ClassVar[str]
    reward: ClassVar[str]
    name: str
    seed: int

    @property
    def rewards(self) -> list[Any]:
        return [self.reward]

    @abstractmethod
    def draw(self, rng: random.Random) -> Problem:
        """One problem of any split; its id is set later."""

    @abstractmethod
    def gold(self, problem: Problem) -> str:
        """A response that is correct."""

    def problem(self, index: int, split: Split) -> Problem:
        """Draw, from a generator seeded by (seed, task, index, split), until the content falls into the split."""
        rng = random.Random(f"{self.seed}|{self.name}|{index}|{split}")
        for _ in range(MAX_DRAWS):
            problem = self.draw(rng)
            if split_of(self.base, problem.key) == split:
                return replace(problem, id=f"{self.name}/{split}/{index}", reward=self.reward)
        raise BadInput(f"task {self.name!r}: no {split} problem in {MAX_DRAWS} draws; widen its parameters")

    def size(self, split: Split) -> int | None:
        return None

    def tagged(self, answer: str) -> str:
        """An answer as a response in the task's style."""
        return f"<answer>{answer}</answer>" if getattr(self, "style", "words") == "plain" else answer


def parameters(kind: type[Generator]) -> list[Field[Any]]:
    """The fields that a task string may set."""
    return [f for f in fields(kind) if f.default is not MISSING]


def build(kind: type[Generator], name: str, seed: int, given: Mapping[str, str]) -> Generator:
    """A generator from the texts after the `?` of a task string. Raises BadInput for an unknown name or value."""
    known = {f.name: f for f in parameters(kind)}
    for key in given:
        if key not in known:
            raise BadInput(f"task {name!r}: unknown parameter {key!r}; {nearest(key, list(known))}")
    return kind(name, seed, **{key: _parse(name, known[key], text) for key, text in given.items()})


def _parse(task: str, known: Field[Any], text: str) -> Any:
    choices, bounds = known.metadata["choices"], known.metadata["bounds"]
    what = f"task {task!r}: {known.name}={text!r}"
    if isinstance(known.default, str):
        if choices and text not in choices:
            raise BadInput(f"{what} is not one of {', '.join(choices)}")
        return text
    low, dash, high = text.partition("-")
    ranged = isinstance(known.default, Range)
    if not (low.isascii() and low.isdigit() and (not dash or (ranged and high.isascii() and high.isdigit()))):
        raise BadInput(f"{what} is not {'a number or a range like 3-5' if ranged else 'a number'}")
    span = Range(int(low), int(high or low))
    if bounds and not bounds[0] <= span.low <= span.high <= bounds[1]:
        raise BadInput(f"{what} is out of bounds; use {bounds[0]} to {bounds[1]}")
    return span if ranged else span.low
