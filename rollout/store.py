"""samples.jsonl.zst: every chain of a run, one zstd frame a step, one line a group. Written, read back, replayed; those
of an evaluation also gone on with where it was cut off.
`zstdcat samples.jsonl.zst` shows it. A frame that was cut off while it was written is as if it had never begun."""

import asyncio
import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import zstandard

from rewards.errors import BadInput, Fault
from rewards.types import Problem, Score
from rollout.collect import Examiner, Question, gather_all
from rollout.evaluate import style_of
from rollout.types import Chain, Group

READ_SIZE = 1 << 20  # bytes read at a time
CHUNK = 128  # chains that an exact sampler is asked for together
IN_FLIGHT = 512  # chains under way at once with a server: more than it decodes, so that it never waits for the longest


class SampleStore:
    """The sample file of one run. Steps are appended in order, each once."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def append(self, step: int, groups: Sequence[Group], **head: Any) -> None:
        """Write one step as one frame, on the disk when this returns; `head` is kept where it has no groups. Raises
        OSError, e.g. on a full disk."""
        told = [{"problem": asdict(group.problem), "chains": [*map(chain_to_json, group.chains)]} for group in groups]
        try:
            text = "".join(json.dumps({"step": step} | row, allow_nan=False) + "\n" for row in told or [head])
        except (TypeError, ValueError) as error:
            raise Fault(f"step {step}: a sample is no JSON ({error}); rewards and problems must be plain") from None
        frame = zstandard.ZstdCompressor(level=3, write_checksum=True).compress(text.encode())
        size = self.path.stat().st_size if self.path.exists() else 0
        with open(self.path, "ab") as file:
            try:
                file.write(frame)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(self.path, size)  # half a frame would hide every later one
                raise


class EvalStore:
    """The answered questions of one evaluation, by prompt style and problem id: in a file, or in memory alone. The file
    is a sample file whose first frame holds the request."""

    def __init__(self, path: Path | None, request: dict[str, Any], resume: bool) -> None:
        """Read back what `resume` goes on from. Raises BadInput where the file is of another `request` (plain JSON)."""
        self.path, self.request = path, json.loads(json.dumps(request))
        self.groups: dict[tuple[str, str], Group] = {}
        self._frames = 0  # in the file
        if path is None or not resume or not path.exists():
            return
        first = next(_frames(path), None)
        found = first and json.loads(first[2][0]).get("request")
        if not found:
            raise BadInput(f"{path} holds no evaluation that can be gone on with; drop --resume to start anew")
        for key in {**found, **self.request}:
            was, asked = (json.dumps(one.get(key)) for one in (found, self.request))
            if was != asked:
                raise BadInput(
                    f"{path} was made with {key} {was}, not {asked}; drop --resume to start anew, or give another --out"
                )
        self._frames = 1 + truncate(path, sys.maxsize)  # without one that was cut off while it was written
        for _, groups in read(path):
            self.groups |= {(style_of(group), group.problem.id): group for group in groups}

    def begin(self) -> None:
        """Right before the first question is asked: whatever stood in the file goes, unless it is gone on with."""
        if self.path is not None and not self._frames:
            self.path.unlink(missing_ok=True)
            SampleStore(self.path).append(0, [], request=self.request)
            self._frames = 1

    def unanswered(self, questions: Sequence[Question]) -> list[Question]:
        """The questions whose answers are not kept."""
        return [question for question in questions if (question.style, question.problem.id) not in self.groups]

    def add(self, groups: Sequence[Group]) -> None:
        """Keep the answers to some questions, on the disk when this returns."""
        if self.path is not None:
            SampleStore(self.path).append(self._frames, groups)
            self._frames += 1
        self.groups |= {(style_of(group), group.problem.id): group for group in groups}

    async def answer(
        self, examiner: Examiner, questions: Sequence[Question], exact: bool, on_chain: Callable[[], None]
    ) -> None:
        """Have every question answered that is not kept yet; all are in the end. `exact`: the sampler gives the same
        bits where it is asked the same at once (transformers), so questions go in fixed chunks, one after another, and
        an interrupted evaluation ends as a whole one does. Else IN_FLIGHT chains are under way at any time. Raises what
        `collect` raises; what is done by then is kept."""
        samples = examiner.plan.samples
        size = max(1, CHUNK // samples) if exact else 1
        chunks = [questions[i : i + size] for i in range(0, len(questions), size)]
        slots = asyncio.Semaphore(1 if exact else max(1, IN_FLIGHT // samples))

        async def answer(chunk: Sequence[Question]) -> None:
            async with slots:
                self.add(await gather_all(examiner.ask(question, on_chain) for question in chunk))

        await gather_all(answer(chunk) for chunk in chunks if self.unanswered(chunk))


def read(path: str | Path, step: int | None = None) -> Iterator[tuple[int, list[Group]]]:
    """(step, groups) of each whole frame, in order; of one step alone where it is given."""
    for _, number, lines in _frames(Path(path)):
        if step in (None, number):
            rows = [row for row in map(json.loads, lines) if "problem" in row]
            yield number, [Group(Problem(**r["problem"]), [*map(chain_from_json, r["chains"])], number) for r in rows]


def truncate(path: str | Path, last_step: int) -> int:
    """Cut off what is behind `last_step`, and any torn tail; the last step that survives, 0 where none does."""
    path, size, last = Path(path), 0, 0
    if not path.exists():
        return 0
    with contextlib.suppress(Fault):  # damage is a torn tail, too: a disk may fill one with zeros
        for end, step, _ in _frames(path):
            if step > last_step:
                break
            size, last = end, step
    with open(path, "r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())
    return last


def chain_to_json(chain: Chain) -> dict[str, Any]:
    """A chain as plain JSON; floats survive exactly, since repr does, and a NaN log-probability becomes null."""
    return vars(chain) | {
        "sampled": [int(flag) for flag in chain.sampled],
        "sampler_logprobs": [None if math.isnan(x) else x for x in chain.sampler_logprobs],
        "score": None if chain.score is None else asdict(chain.score),
    }


def chain_from_json(data: dict[str, Any]) -> Chain:
    """The inverse of `chain_to_json`."""
    sampled, versions = [*map(bool, data["sampled"])], [*map(tuple, data["versions"])]
    logprobs = [math.nan if x is None else x for x in data["sampler_logprobs"]]
    score = None if data["score"] is None else Score(**data["score"])
    return Chain(**data | {"sampled": sampled, "sampler_logprobs": logprobs, "versions": versions, "score": score})


def _frames(path: Path) -> Iterator[tuple[int, int, list[bytes]]]:
    """(end offset, step, lines) of each whole frame. Raises Fault for bytes that are damaged rather than cut off."""
    end, rest, parts = 0, b"", []
    decoder = zstandard.ZstdDecompressor().decompressobj()
    with open(path, "rb") as file:
        while chunk := rest or file.read(READ_SIZE):
            try:
                parts.append(decoder.decompress(chunk))
            except zstandard.ZstdError as error:
                reason = f"{path} is damaged behind byte {end}: {error}; cut it there to keep what is before"
                raise Fault(reason) from None
            rest = decoder.unused_data  # empty until the frame ends
            if decoder.eof:
                lines = b"".join(parts).splitlines()
                end = file.tell() - len(rest)
                yield end, int(json.loads(lines[0])["step"]), lines
                decoder, parts = zstandard.ZstdDecompressor().decompressobj(), []
