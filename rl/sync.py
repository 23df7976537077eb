"""The push: new weights from the learner to the sampler."""

import asyncio
import contextlib
import copy
import fcntl
import json
import math
import os
import secrets
import shutil
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from rewards.errors import BadInput, Fault
from rl.flops import is_adapter
from rl.parallel import ONE, Ranks, full
from rollout.client import ServerControl

T = TypeVar("T")
Manifest = list[tuple[str, str, tuple[int, ...]]]

DTYPES = {"float32": ("F32", 4), "bfloat16": ("BF16", 2), "float16": ("F16", 2)}  # safetensors' name, bytes
# What checkpointing, DDP, compile and peft (whose one adapter is called default) put into names
WRAPPERS = {"_checkpoint_wrapped_module", "module", "_orig_mod", "base_layer", "default"}
PEFT_PREFIX = "base_model.model."  # what peft puts before the names of parameters in its files


class WeightSource(Protocol):
    """The learner's weights under HF checkpoint names, one full tensor at a time."""

    def manifest(self) -> Manifest:
        """(HF name, dtype such as "float32", global shape) of each tensor, in the order of `tensors()`."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Gather and yield (HF name, full tensor). Rank 0 may stop anywhere: each tensor is a gathering of its own."""


@dataclass(frozen=True)
class ModuleSource:
    """A WeightSource over a plain nn.Module, sent in `dtype` (the one that is served).
    A head that really shares its embedding's tensor appears once, as in `named_parameters()`; one that merely could be
    tied is sent, else the server would keep its old one. A layer under a LoRA adapter is sent merged, as
    W + scale * B A (Hu et al. 2021, equation 3) in fp32, cast once; the module itself is left as it is.
    As `part`, the base is sent without what adapters add, or the adapters alone, under peft's names."""

    module: nn.Module
    dtype: str = "float32"
    part: Literal["merged", "base", "adapter"] = "merged"
    ranks: Ranks = ONE

    def manifest(self) -> Manifest:
        return [(hf_name(name), self.dtype, tuple(p.shape)) for name, p in self.parameters()]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, _ in self.parameters():
            yield hf_name(name), self.tensor(name)

    def tensor(self, name: str) -> Tensor:
        """What is sent for one of the module's parameters. Where they are sharded every rank gathers it, once rank 0
        asks: one at a time, so that a push that breaks off leaves no rank waiting."""
        weight: Any = self.module.get_parameter(name).detach()
        owner, adapted, _ = name.partition(".base_layer.weight")
        with self.ranks.gathering("tensor", name, self.dtype, self.part), torch.no_grad():
            if adapted and self.part == "merged":
                layer: Any = self.module.get_submodule(owner)  # adapters are fp32 (rl.model), hence the sum is
                weight = sum((layer.get_delta_weight(adapter) for adapter in layer.active_adapters), weight)
            return full(weight.to(getattr(torch, self.dtype)))

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What is sent, or what it is made from, by the module's own names."""
        return ((n, p) for n, p in self.module.named_parameters() if is_adapter(n) == (self.part == "adapter"))


@dataclass
class Push:
    """What every push does; how the bytes travel is a subclass's. push() raises Fault where a server refuses or
    mislabels the weights, ServerDown where one is dead. Whatever happens, the living servers are resumed.
    Rank 0 iterates the source once all servers are paused."""

    controls: Sequence[ServerControl]
    adapter = ""  # what to sample from, if not the model itself

    async def push(self, source: WeightSource, version: int) -> None:
        await self.prepare(source)
        try:
            await self.each(lambda c: c.pause())  # and drops the prefix cache: its keys and values are of old weights
            await self.transfer(source, version)
            for c, label in zip(self.controls, await self.each(lambda c: c.weight_version()), strict=True):
                if label != version:
                    raise Fault(f"server {c.url} labels its weights {label} after a push of {version}; restart it")
        finally:
            await self.each(lambda c: c.resume())

    async def prepare(self, source: WeightSource) -> None: ...  # what can be done or refused before a pause
    async def transfer(self, source: WeightSource, version: int) -> None: ...  # and label
    def close(self) -> None: ...  # lets go of what is held between pushes

    async def each(self, call: Callable[[ServerControl], Awaitable[T]]) -> list[T]:
        """Call every server at once, wait for all, then raise the first error."""
        results = await asyncio.gather(*(call(control) for control in self.controls), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return cast(list[T], results)


@dataclass
class FilePush(Push):
    """Push through a safetensors file in `directory`, which the servers see too (their PONDER_SYNC_DIR).
    push() raises BadInput where the directory lacks space. Whatever happens, the file is removed."""

    directory: Path

    async def prepare(self, source: WeightSource) -> None:
        clean(self.directory)
        needed = sum(DTYPES[dtype][1] * math.prod(shape) for _, dtype, shape in source.manifest())
        try:
            free = shutil.disk_usage(self.directory).free
        except OSError as error:
            raise BadInput(f"sync.dir={self.directory} can't be used: {error.strerror}") from None
        if free < needed:
            raise BadInput(f"sync.dir={self.directory} has {free} bytes free, the weights need {needed}; change it")
        await self.each(lambda c: c.init_transfer({"directory": str(self.directory.resolve())}))

    async def transfer(self, source: WeightSource, version: int) -> None:
        with weights_file(self.directory, source, version) as path:
            await self.each(start)
            await self.each(lambda c: c.update({"path": str(path.resolve())}))
            await self.each(lambda c: c.finish_update(version))


@dataclass
class AdapterPush(Push):
    """Push of LoRA adapters alone to servers that hold the base: every version under a new name and a new path, since
    vLLM keys its prefix cache on both. The base goes ahead of it where a server has none of ours, or it was changed.
    Where a server refuses the first adapter, `whole` alone can do it (rl.backend)."""

    whole: Push
    directory: Path
    adapter: str = ""
    base: tuple[int, ...] = ()  # how often each tensor of the base had been changed when it was pushed
    locks: list[int] = field(default_factory=list)  # of the newest versions' directories

    async def prepare(self, source: WeightSource) -> None:
        clean(self.directory)
        base = replace(cast(ModuleSource, source), part="base")
        changes = tuple(p._version for _, p in base.parameters())
        known = await self.each(lambda c: c.adapters())
        if changes != self.base or not all(self.adapter in names for names in known):
            await self.whole.push(base, -1)  # no version: it has no adapter yet
            self.base = changes

    async def transfer(self, source: WeightSource, version: int) -> None:
        path = self.directory / f"ponder-{secrets.token_hex(4)}-v{version}"
        draft = path.with_suffix(".draft")
        try:
            draft.mkdir()
            self.locks.append(os.open(draft, os.O_RDONLY))  # ours until it is closed, or this process ends
            fcntl.flock(self.locks[-1], fcntl.LOCK_EX)
            write_adapter(cast(ModuleSource, source), draft)
            draft.rename(path)
        except OSError as error:
            raise BadInput(f"sync.dir={self.directory} can't be written: {error.strerror}; choose another") from error
        await self.each(lambda c: c.load_adapter(path, version, keep=self.adapter))  # which a late request may name
        self.adapter = path.name
        if len(self.locks) > 2:  # unloaded at this push, removed at the next one
            os.close(self.locks.pop(0))

    def close(self) -> None:
        self.whole.close()


def clean(directory: Path) -> None:
    """Remove what is left of pushes whose process is gone, or done with them, and so the lock."""
    for path in directory.glob("ponder-*-v*"):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.callback(os.close, handle := os.open(path, os.O_RDONLY))
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_adapter(source: ModuleSource, directory: Path) -> None:
    """The LoRA adapters of a source's module alone, as peft's own two files in a directory that exists."""
    config: Any = copy.copy(next(iter(source.module.peft_config.values())))  # type: ignore[operator]
    config.target_modules = sorted(config.target_modules)  # a set, whose order would differ from run to run
    config.inference_mode = True  # as peft's own save_pretrained has it: who loads it, by default does not train it
    config.save_pretrained(str(directory))
    with (directory / "adapter_model.safetensors").open("wb") as file:
        write_safetensors(file, replace(source, dtype="float32", part="adapter"))


async def start(control: ServerControl) -> None:
    """Open the update of one server."""
    try:
        await control.start_update()
    except Fault:  # a learner that was killed in its push has left one open
        with contextlib.suppress(Fault):
            await control.update({"path": ""})  # refused, and a refusal ends the update
        await control.start_update()


def checked(source: WeightSource) -> Iterator[Tensor]:
    """The source's tensors, contiguous, each compared with the manifest: Fault where they differ."""
    for (name, dtype, shape), (got, tensor) in zip(source.manifest(), source.tensors(), strict=True):
        if (got, str(tensor.dtype), tuple(tensor.shape)) != (name, f"torch.{dtype}", shape):
            raise Fault(f"the weights' manifest says {name} {dtype} {shape}, the stream {got} {tensor.dtype}")
        yield tensor.contiguous()


def hf_name(name: str) -> str:
    """A parameter's name in checkpoints, an adapter's in peft's: what wrappers put before or between is stripped."""
    return PEFT_PREFIX * is_adapter(name) + ".".join(part for part in name.split(".") if part not in WRAPPERS)


@contextlib.contextmanager
def weights_file(directory: Path, source: WeightSource, version: int) -> Iterator[Path]:
    """The weights as a safetensors file that exists as long as the block runs; BadInput where the disk refuses."""
    path = directory / f"ponder-{secrets.token_hex(4)}-v{version}.safetensors"
    with contextlib.ExitStack() as stack:
        stack.callback(path.unlink, missing_ok=True)
        try:
            file = stack.enter_context(path.open("xb"))
            fcntl.flock(file, fcntl.LOCK_EX)  # goes with the process, also by kill -9: see FilePush.push
            write_safetensors(file, source)
        except OSError as error:
            raise BadInput(f"sync.dir={directory} can't be written: {error.strerror}; choose another one") from error
        yield path


def write_safetensors(file: IO[bytes], source: WeightSource) -> None:
    """Stream a source into a file: 8 bytes of header length, JSON header, then each tensor's bytes.
    `safetensors.torch.save_file` wants all tensors at once, a second copy of the model; this holds one."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape in source.manifest():
        begin, end = end, end + DTYPES[dtype][1] * math.prod(shape)
        header[name] = {"dtype": DTYPES[dtype][0], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the data
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in checked(source):
        file.write(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
    file.flush()
