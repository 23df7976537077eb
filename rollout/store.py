"""samples.jsonl.zst: every chain of a run, one zstd frame a step, one line a group. Written, read back, replayed.
`zstdcat samples.jsonl.zst` shows it. A frame that was cut off while it was written is as if it had never begun."""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import zstandard

from rewards.errors import Fault
from rewards.types import Problem, Score
from rollout.types import Chain, Group

CHUNK = 1 << 20  # bytes read at a time


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


def read(path: str | Path, step: int | None = None) -> Iterator[tuple[int, list[Group]]]:
    """(step, groups) of each whole frame, in order; of one step alone where it is given."""
    for _, number, lines in _frames(Path(path)):
        if step in (None, number):
            rows = [row for row in map(json.loads, lines) if "problem" in row]
            yield number, [Group(Problem(**r["problem"]), [*map(chain_from_json, r["chains"])], number) for r in rows]


def read_request(path: str | Path) -> dict[str, Any] | None:
    """The head that an evaluation's file begins with; None where a file begins otherwise."""
    first = next(_frames(Path(path)), None)
    return None if first is None else json.loads(first[2][0]).get("request")


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
        while chunk := rest or file.read(CHUNK):
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
