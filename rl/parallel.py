"""Several ranks of one learner. Rank 0 runs the loop; what all must do together it tells the others through a store of
its own, on which they wait for as long as it takes and whose end they see at once: docs/decisions/ranks.md."""

import contextlib
import json
import signal
import socket
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor, nn

from rewards.errors import BadInput, Fault, one_line
from rl.batch import MicroBatch, TrainBatch, pack

T = TypeVar("T")
PATIENCE = timedelta(hours=12)  # of one wait for rank 0, after which the next begins
LEAVING = timedelta(seconds=10)  # that rank 0 waits for the others to have heard the end


@dataclass(eq=False)
class Ranks:
    """This process's place among the learner's. By default it is alone, and every method gives its input back."""

    rank: int = 0
    size: int = 1
    sharded: bool = False  # each rank holds a part of every weight (fsdp2)
    store: Any = None  # served by rank 0
    door: Any = None  # the store at which the ranks met, kept open until all have
    told: int = 0  # commands so far
    lost: bool = False  # some rank fell out of step: nothing can be done together any more

    def tell(self, what: str, *values: Any) -> None:
        """From rank 0: what the others are to do next."""
        if self.rank == 0 and self.size > 1:
            self.store.set(str(self.told), json.dumps([what, *values]))
            self.store.delete_key(str(self.told - 2))  # the one before it may not have been read yet
            self.told += 1

    def hear(self) -> list[Any]:
        """What rank 0 tells next. Raises Fault where rank 0 is gone."""
        key, self.told = str(self.told), self.told + 1
        while True:
            try:
                self.store.wait([key], PATIENCE)
                return list(json.loads(self.store.get(key)))
            except dist.DistNetworkError:
                raise Fault(f"rank {self.rank}: rank 0 of the learner is gone; see what it said last") from None
            except dist.DistStoreError:
                continue  # a long rollout

    @contextlib.contextmanager
    def together(self, what: str, *values: Any) -> Iterator[None]:
        """A block that all ranks run. Our own errors are every rank's alike; after any other they are out of step."""
        self.tell(what, *values)
        try:
            yield
        except (BadInput, Fault):
            raise
        except BaseException as error:
            self.lost = self.size > 1
            if self.lost and isinstance(error, RuntimeError):
                what = f"rank {self.rank} of the learner failed, or lost another"
                raise Fault(f"{what}: {one_line(str(error))}") from error
            raise

    def gathering(self, what: str, *values: Any) -> contextlib.AbstractContextManager[None]:
        """`together` where the weights are sharded; else rank 0 has all that it needs."""
        return self.together(what, *values) if self.sharded else nullcontext()

    def whole(self, tensor: Tensor) -> Tensor:
        """All of a tensor that may be sharded, for rank 0 to keep, on the CPU; sharded, every rank must ask for it."""
        tensor = full(tensor)
        return tensor.cpu() if self.rank == 0 else tensor.new_empty(0)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def most(self, value: float) -> float:
        """The largest of all ranks' numbers."""
        if self.size > 1:
            dist.all_reduce(found := torch.tensor(value, dtype=torch.float64), dist.ReduceOp.MAX)
            value = float(found)
        return value

    def total(self, tally: "Counter[str]") -> "Counter[str]":
        """The sums over all ranks of figures that each has under the same names."""
        if self.size == 1:
            return tally
        names = sorted(tally)
        sums = self.sum(torch.tensor([float(tally[name]) for name in names], dtype=torch.float64))
        return Counter(dict(zip(names, sums.tolist(), strict=True)))

    def packed(
        self, batch: TrainBatch, sequences: Sequence[int], limit: int, unsynced: Callable[[], Any] = nullcontext
    ) -> Iterator[MicroBatch]:
        """This rank's micro-batches of some chains; a loop's body runs `unsynced` for all but the last."""
        micros = pack(batch, sequences, limit, self.rank, self.size)
        for left, micro in zip(range(len(micros) - 1, -1, -1), micros, strict=True):
            with unsynced() if left else nullcontext():
                yield micro

    @contextlib.contextmanager
    def filling(self, rows: Tensor, *vectors: Tensor) -> Iterator[None]:
        """A block in which each rank fills in its own of some rows; after it every rank has them all."""
        for vector in vectors if self.size > 1 else ():
            vector[rows] = 0.0
        yield
        for vector in vectors if self.size > 1 else ():
            vector[rows] = self.sum(vector[rows])

    def ready(self, module: nn.Module, lr: float, decay: float, accelerator: Any) -> tuple[nn.Module, Any]:
        """A module placed, and sharded or wrapped in DDP, and the AdamW of what it trains, if anything."""
        if self.sharded:
            shard(module, accelerator.mixed_precision == "bf16")
        trained = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr, weight_decay=decay, fused=True) if trained else None
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # at accelerate's own arguments
            if optimizer is None or self.sharded:
                return module, optimizer and accelerator.prepare(optimizer)
            return cast(tuple[nn.Module, Any], accelerator.prepare(module, optimizer))

    def share(self, batch: TrainBatch) -> TrainBatch:
        """Rank 0's batch, on every rank."""
        if self.size == 1:
            return batch
        data = torch.frombuffer(bytearray(save(batch.to_tensors())), dtype=torch.uint8)
        dist.broadcast(length := torch.tensor(len(data)), 0)
        data = data if self.rank == 0 else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(data, 0)
        return TrainBatch.from_tensors(load(data.numpy().tobytes()))

    def agreed(self, check: Callable[[T], None]) -> Callable[[T], None]:
        """A check of rank 0's whose refusal stops all ranks at the same place."""

        def on_all(given: T) -> None:
            refusal: Exception | None = None
            try:
                check(given)
            except Exception as error:
                refusal = error
            if self.most(refusal is not None):
                raise refusal or Fault("rank 0 refused the step")

        return on_all if self.size > 1 else check

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """Rank 0's whole run: however it ends, the others end with the same exit code."""
        code = 1
        try:
            yield
            code = 0
        except BaseException as error:
            code = getattr(error, "exit_code", code)
            raise
        finally:
            self.tell("end", code)
            if self.size > 1 and not self.lost:
                with contextlib.suppress(RuntimeError):  # one may be dead
                    self.store.wait([f"left {rank}" for rank in range(1, self.size)], LEAVING)
                dist.destroy_process_group()

    def follow(self, commands: dict[str, Callable[..., object]]) -> None:
        """The other ranks' whole run: do what rank 0 tells, exit with its code, and leave signals to it."""
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)
        while (command := self.hear())[0] != "end":
            try:
                commands[command[0]](*command[1:])
            except (BadInput, Fault):  # rank 0 has it, too, and says it
                if self.lost:
                    raise
        dist.destroy_process_group()
        self.store.set(f"left {self.rank}", "")
        raise SystemExit(command[1])


ONE = Ranks()


def join(env: MutableMapping[str, str], sharded: bool) -> Ranks:
    """Meet the other ranks that the launcher's environment names; the process group exists afterwards."""
    env.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")  # one machine: nobody else's
    cuda = torch.cuda.is_available()
    if cuda:
        if (count := torch.cuda.device_count()) < int(env["WORLD_SIZE"]):
            raise BadInput(f"{env['WORLD_SIZE']} ranks need a GPU each and there are {count}; lower --num_processes")
        torch.cuda.set_device(int(env["LOCAL_RANK"]))
    door, rank, size = next(dist.rendezvous("env://"))
    if rank == 0:
        listener = socket.create_server(("127.0.0.1", 0))
        door.set("ponder", str(listener.getsockname()[1]))
        place: dict[str, Any] = {"is_master": True, "wait_for_workers": False, "master_listen_fd": listener.detach()}
    port = int(door.get("ponder"))
    store = dist.TCPStore("127.0.0.1", port, **(place if rank == 0 else {"is_master": False}))
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=dist.PrefixStore("group", store), rank=rank, world_size=size)
    return Ranks(rank, size, sharded, store, door)


def shard(module: nn.Module, half: bool) -> None:
    """FSDP2: each rank holds a part of every weight, layer by layer; outputs and sums of gradients stay fp32."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from torch.distributed.tensor import DTensor

    policy = MixedPrecisionPolicy(torch.bfloat16 if half else None, torch.float32 if half else None, None)
    names = {name for each in module.modules() for name in getattr(each, "_no_split_modules", None) or ()}
    for part in [each for each in module.modules() if type(each).__name__ in names] + [module]:
        fully_shard(part, mp_policy=policy)
    if left := [name for name, p in module.named_parameters() if not isinstance(p, DTensor)]:
        raise Fault(f"fsdp2 left {left[0]} whole")


def full(tensor: Any) -> Tensor:
    """All of a tensor that may be sharded; then every rank must ask for it."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def like(whole: Tensor, other: Any) -> Tensor:
    """A whole tensor, which every rank holds, sharded as another one is."""
    if not hasattr(other, "full_tensor"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, other.device_mesh, other.placements, src_data_rank=None)
