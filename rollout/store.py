"""samples.jsonl.zst: every chain of a run, one zstd frame a step, one line a group. Written, read back, replayed.

`zstdcat samples.jsonl.zst` shows it. A frame that was cut off while it was written is as if it had never begun.
"""

from __future__ import annotations

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

    def append(self, step: int, groups: Sequence[Group]) -> None:
        """Write one step as one frame, on the disk when this returns. Raises OSError, e.g. on a full disk."""
        self._append([_dump(group_to_json(group, step)) for group in groups] or [_dump({"step": step})])

    def begin(self, request: dict[str, Any]) -> None:
        """Start the file anew with a frame that says what was asked for; it holds no groups."""
        self.path.unlink(missing_ok=True)
        self._append([_dump({"step": 0, "request": request})])

    def _append(self, lines: list[str]) -> None:
        frame = zstandard.ZstdCompressor(level=3, write_checksum=True).compress("".join(lines).encode())
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
    for _, data in _frames(Path(path)):
        lines = data.decode().splitlines()
        found = json.loads(lines[0])["step"] if step is not None else None
        if found == step or step is None:
            yield _parse(lines)


def read_request(path: str | Path) -> dict[str, Any] | None:
    """What `SampleStore.begin` wrote; None where the file begins otherwise."""
    data = next((data for _, data in _frames(Path(path))), b"{}")
    request: dict[str, Any] | None = json.loads(data.split(b"\n", 1)[0]).get("request")
    return request


def truncate(path: str | Path, last_step: int) -> int:
    """Cut the file behind `last_step` (and any torn tail), leaving the frames before byte for byte.

    Returns the last step that survives, 0 where none does.
    """
    path, size, last = Path(path), 0, 0
    if not path.exists():
        return 0
    with contextlib.suppress(Fault):  # damage is a torn tail, too: a disk may fill one with zeros
        for end, data in _frames(path):
            step = json.loads(data.split(b"\n", 1)[0])["step"]
            if step > last_step:
                break
            size, last = end, step
    with open(path, "r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())
    return last


def group_to_json(group: Group, step: int) -> dict[str, Any]:
    """A group as plain JSON; a log-probability that is NaN becomes null."""
    return {"step": step, "problem": asdict(group.problem), "chains": [chain_to_json(c) for c in group.chains]}


def chain_to_json(chain: Chain) -> dict[str, Any]:
    """A chain as plain JSON; floats survive exactly, since repr does."""
    out = dict(vars(chain))
    out["sampled"] = [int(flag) for flag in chain.sampled]
    out["sampler_logprobs"] = [None if math.isnan(x) else x for x in chain.sampler_logprobs]
    out["score"] = None if chain.score is None else asdict(chain.score)
    return out


def chain_from_json(data: dict[str, Any]) -> Chain:
    """The inverse of `chain_to_json`."""
    fields = dict(data)
    fields["sampled"] = [bool(flag) for flag in data["sampled"]]
    fields["sampler_logprobs"] = [math.nan if x is None else x for x in data["sampler_logprobs"]]
    fields["versions"] = [(start, version) for start, version in data["versions"]]
    fields["score"] = None if data["score"] is None else Score(**data["score"])
    return Chain(**fields)


def _dump(row: dict[str, Any]) -> str:
    try:
        return json.dumps(row, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise Fault(f"step {row['step']}: a sample is no JSON ({error}); rewards and problems must be plain") from None


def _parse(lines: list[str]) -> tuple[int, list[Group]]:
    rows = [json.loads(line) for line in lines]
    step = rows[0]["step"]
    groups = [
        Group(Problem(**row["problem"]), [chain_from_json(c) for c in row["chains"]], step)
        for row in rows
        if "problem" in row
    ]
    return step, groups


def _frames(path: Path) -> Iterator[tuple[int, bytes]]:
    """(end offset, content) of each whole frame. Raises Fault for bytes that are damaged rather than cut off."""
    end = 0
    with open(path, "rb") as file:
        rest = file.read(CHUNK)
        while rest:
            decoder, parts, read_bytes = zstandard.ZstdDecompressor().decompressobj(), [], 0
            try:
                while not decoder.eof:
                    if not (chunk := rest or file.read(CHUNK)):
                        return
                    parts.append(decoder.decompress(chunk))
                    read_bytes, rest = read_bytes + len(chunk), b""
            except zstandard.ZstdError as error:
                raise Fault(
                    f"{path} is damaged behind byte {end}: {error}; cut it there to keep what is before"
                ) from None
            rest = decoder.unused_data
            end += read_bytes - len(rest)
            yield end, b"".join(parts)
            rest = rest or file.read(CHUNK)
