"""An evaluation's chains on disk as they come, so that one that was killed goes on where it was."""

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rewards.errors import BadInput
from rollout import store
from rollout.collect import Examiner, Question, gather_all
from rollout.evaluate import style_of
from rollout.types import Group

CHUNK = 128  # chains that an exact sampler is asked for together
IN_FLIGHT = 512  # chains under way at once with a server: more than it decodes, so that it never waits for the longest


class EvalStore:
    """The answered questions of one evaluation, by prompt style and problem id: in a file, or in memory alone."""

    def __init__(self, path: Path | None, request: dict[str, Any], resume: bool) -> None:
        """Read back what `resume` goes on from. Raises BadInput where the file is of another `request` (plain JSON)."""
        self.path = path
        self.request = json.loads(json.dumps(request))
        self.groups: dict[tuple[str, str], Group] = {}
        self._frames = 1  # with the request
        self._resumes = resume and path is not None and path.exists()
        if path is None or not self._resumes:
            return
        found = store.read_request(path)
        if found is None:
            raise BadInput(f"{path} holds no evaluation that can be gone on with; drop --resume to start anew")
        for key in {**found, **self.request}:
            if found.get(key) != self.request.get(key):
                was, asked = json.dumps(found.get(key)), json.dumps(self.request.get(key))
                raise BadInput(
                    f"{path} was made with {key} {was}, not {asked}; drop --resume to start anew, or give another --out"
                )
        store.truncate(path, sys.maxsize)  # a frame that was cut off while it was written
        for self._frames, (_, groups) in enumerate(store.read(path), 1):
            self.groups |= {(style_of(group), group.problem.id): group for group in groups}

    def begin(self) -> None:
        """Right before the first question is asked: whatever stood in the file goes, unless it is gone on with."""
        if self.path is not None and not self._resumes:
            self.path.unlink(missing_ok=True)
            store.SampleStore(self.path).append(0, [], request=self.request)

    def unanswered(self, questions: Sequence[Question]) -> list[Question]:
        """The questions whose answers are not kept."""
        return [question for question in questions if (question.style, question.problem.id) not in self.groups]

    def add(self, groups: Sequence[Group]) -> None:
        """Keep the answers to some questions, on the disk when this returns."""
        if self.path is not None:
            store.SampleStore(self.path).append(self._frames, groups)
            self._frames += 1
        self.groups |= {(style_of(group), group.problem.id): group for group in groups}


async def answer_all(
    examiner: Examiner, questions: Sequence[Question], kept: EvalStore, exact: bool, on_chain: Callable[[], None]
) -> None:
    """Have every question answered that `kept` does not hold yet; `kept` holds them all in the end. `exact`: the
    sampler gives the same bits where it is asked the same at once (transformers), so questions go in fixed chunks, one
    after another, and an interrupted evaluation ends as a whole one does. Else IN_FLIGHT chains are under way at any
    time. Raises what `collect` raises; what is done by then is kept."""
    samples = examiner.plan.samples
    size = max(1, CHUNK // samples) if exact else 1
    chunks = [questions[i : i + size] for i in range(0, len(questions), size)]
    slots = asyncio.Semaphore(1 if exact else max(1, IN_FLIGHT // samples))

    async def answer(chunk: Sequence[Question]) -> None:
        async with slots:
            kept.add(await gather_all(examiner.ask(question, on_chain) for question in chunk))

    await gather_all(answer(chunk) for chunk in chunks if kept.unanswered(chunk))
