"""What a task is: problems as a pure function of (seed, index, split), split by content; several tasks by weight."""

import hashlib
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from functools import lru_cache
from itertools import count
from typing import Any, ClassVar, get_args

from rewards.errors import BadInput, nearest
from rewards.types import Problem, Split

SPLITS: tuple[Split, ...] = get_args(Split)
MAX_DRAWS = 20_000  # after which a generator says that a split holds nothing
MAX_STEP = 199  # values stay in 0..MAX_STEP on the way to a result: the word-level vocabulary ends there
CYCLE = 1000  # problems of a mixture in which every task has its exact share, and at least one
OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
_NUMBER_OR_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)


class Task(ABC):
    """A source of problems."""

    name: str  # the task string that it was loaded from
    reward: Any  # spec of the default reward; None for a mixture, where each problem names its own

    @property
    def rewards(self) -> list[Any]:
        """Every reward spec that its problems may name."""
        return [self.reward]

    @abstractmethod
    def problem(self, index: int, split: Split) -> Problem:
        """Problem `index` >= 0 of a split. Raises BadInput where the split has none."""

    def size(self, split: Split) -> int | None:
        """Problems in the split; None for a generator, which never ends."""
        return None

    @abstractmethod
    def gold(self, problem: Problem) -> str:
        """A response to one of its problems that must be scored correct."""


def split_of(task: str, key: str) -> Split:
    """The split that a problem's content belongs to: a stable hash mod 10, 0 test, 1 val, the rest train."""
    digest = hashlib.blake2b(f"{task}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    bucket = int.from_bytes(digest, "big") % 10
    return {0: "test", 1: "val"}.get(bucket, "train")  # type: ignore[return-value]


def check_names(where: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises BadInput for the first name that is not known."""
    for name in given:
        if name not in known:
            raise BadInput(f"{where}: unknown parameter {name!r}; {nearest(name, known)}")


def number(default: int | tuple[int, int], bounds: tuple[int, int], help: str) -> Any:
    """A task's parameter: an integer, or an inclusive range of them (low, high), written `3` or `3-5`."""
    return field(default=default, metadata={"help": help, "bounds": bounds})


def style() -> Any:
    """A task's parameter: how its prompts and answers are written."""
    what = "`words`: tokens apart by blanks, for word-level models; `plain`: in English"
    return field(default="words", metadata={"help": what, "choices": ("words", "plain")})


@dataclass(frozen=True)
class Generator(Task):
    """A task that makes its problems up. Subclasses add parameters as fields and say how to draw one problem."""

    base: ClassVar[str]
    name: str
    seed: int

    @abstractmethod
    def draw(self, rng: random.Random) -> Problem:
        """One problem of any split; its id is set later."""

    def gold(self, problem: Problem) -> str:
        return f"<answer>{problem.answer}</answer>" if getattr(self, "style", "") == "plain" else problem.answer

    def problem(self, index: int, split: Split) -> Problem:
        """Draw, from a generator seeded by (seed, task, index, split), until the content falls into the split."""
        rng = random.Random(f"{self.seed}|{self.name}|{index}|{split}")
        for _ in range(MAX_DRAWS):
            problem = self.draw(rng)
            if split_of(self.base, problem.key) == split:
                return replace(problem, id=f"{self.name}/{split}/{index}", reward=self.reward)
        raise BadInput(f"task {self.name!r}: no {split} problem in {MAX_DRAWS} draws; widen its parameters")


def parameters(kind: type[Generator]) -> dict[str, Field[Any]]:
    """The fields that a task string may set."""
    return {f.name: f for f in fields(kind) if f.default is not MISSING}


def build(kind: type[Generator], name: str, seed: int, given: Mapping[str, str]) -> Generator:
    """A generator from the texts after the `?` of a task string. Raises BadInput for an unknown name or value."""
    known, values = parameters(kind), dict[str, Any](given)
    check_names(f"task {name!r}", given, known)
    for key, text in given.items():
        what, default, metadata = f"task {name!r}: {key}={text!r}", known[key].default, known[key].metadata
        if isinstance(default, str):
            if text not in metadata["choices"]:
                raise BadInput(f"{what} is not one of {', '.join(metadata['choices'])}")
            continue
        ranged, match = isinstance(default, tuple), _NUMBER_OR_RANGE.fullmatch(text)
        if match is None or (match[2] and not ranged):
            raise BadInput(f"{what} is not {'a number or a range like 3-5' if ranged else 'a number'}")
        low, high = int(match[1]), int(match[2] or match[1])
        least, most = metadata["bounds"]
        if not least <= low <= high <= most:
            raise BadInput(f"{what} is out of bounds; use {least} to {most}")
        values[key] = (low, high) if ranged else low
    return kind(name, seed, **values)


class Mixture(Task):
    """Each cycle of CYCLE problems holds exact shares in a seeded order; ids begin with the name of their task.
    A task without problems in a split takes no part there."""

    reward = None

    def __init__(self, parts: list[tuple[Task, float]], seed: int = 0) -> None:
        self.name = " + ".join(task.name for task, _ in parts)
        self.seed = seed
        self._parts = parts
        self.parts = [task for task, _ in parts]
        self._turns = lru_cache(maxsize=8)(self._shuffled)

    @property
    def rewards(self) -> list[Any]:
        return [spec for task, _ in self._parts for spec in task.rewards]

    def problem(self, index: int, split: Split) -> Problem:
        """Problem `index` of the mixture: the next one of the task whose turn it is."""
        task, inner = self._locate(index, split)
        return qualified(task, task.problem(inner, split))

    def size(self, split: Split) -> int | None:
        """Problems until the first finite task runs out (train rows wrap around: their sum, or None)."""
        sizes = {task.name: task.size(split) for task, _ in self._parts}
        finite = {name: size for name, size in sizes.items() if size}
        if not finite or split == "train":
            return None if None in sizes.values() else sum(finite.values())
        turns = ((index, *self._locate(index, split)) for index in count())
        return next(index for index, task, inner in turns if inner == finite.get(task.name))

    def gold(self, problem: Problem) -> str:
        return self.part(problem).gold(problem)

    def part(self, problem: Problem) -> Task:
        """The task that a problem of the mixture came from."""
        for task, _ in sorted(self._parts, key=lambda part: -len(part[0].name)):
            if problem.id.startswith((f"{task.name}/", f"{task.name}:")):
                return task
        raise KeyError(f"problem {problem.id!r} is of none of {self.name}")

    def _locate(self, index: int, split: Split) -> tuple[Task, int]:
        cycle, place = divmod(index, CYCLE)
        return self._turns(cycle, split)[place]

    def _shuffled(self, cycle: int, split: Split) -> list[tuple[Task, int]]:
        """The tasks of one cycle with the index that each turn has inside its task."""
        parts = [(task, weight) for task, weight in self._parts if task.size(split) != 0]
        if not parts:
            raise BadInput(f'{self.name}: no {split} problems; add "split": "{split}" to some rows')
        whole = shares([weight for _, weight in parts])
        turns = [k for k, share in enumerate(whole) for _ in range(share)]
        random.Random(f"{self.seed}|{self.name}|{cycle}|{split}").shuffle(turns)
        upcoming = [count(cycle * share) for share in whole]
        return [(parts[k][0], next(upcoming[k])) for k in turns]


def qualified(task: Task, problem: Problem) -> Problem:
    """A problem whose id begins with the name of its task, so that ids stay apart where tasks come together."""
    return problem if problem.id.startswith(f"{task.name}/") else replace(problem, id=f"{task.name}:{problem.id}")


def shares(weights: list[float]) -> list[int]:
    """CYCLE divided by weight, largest remainders first, at least 1 each."""
    exact = [weight / sum(weights) * CYCLE for weight in weights]
    whole = [max(1, int(share)) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda k: int(exact[k]) - exact[k])
    for k in by_remainder[: max(0, CYCLE - sum(whole))]:
        whole[k] += 1
    whole[whole.index(max(whole))] -= max(0, sum(whole) - CYCLE)
    return whole
