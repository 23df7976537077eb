"""What samples for a run: vLLM servers (started here or elsewhere), or transformers in-process. Whichever it is, what
has just (re)started is pushed to before its first request."""

import asyncio
import contextlib
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import tenacity

from rewards.errors import BadInput, Fault
from rl.build import Setup, prepare
from rl.config import Config
from rl.exits import StopSignal
from rl.memory import Placement, place, served_rank, serving_gpus
from rl.nccl import NcclPush
from rl.rundir import RunDir, write_json
from rl.sync import AdapterPush, FilePush, Push, WeightSource
from rollout.client import ServerControl, ServerDown, VllmClient
from rollout.server.argv import ServerSpec
from rollout.server.middleware import KEY_VARIABLE
from rollout.server.process import ServerProcess, check_startable, free_port
from rollout.types import Sampler

OnWait = Callable[[float, str], None]  # called while a server starts: seconds so far, newest log line
PORT_PATIENCE = 6.0  # seconds that a port may be taken: a killed run's server ends after its supervisor's grace
REMOTE_WAITS = 60  # times, 5 s apart, that a server elsewhere is asked whether it is back


class Backend:
    """Samples chains with the newest pushed weights. This one can't: for --replay, where chains come from a file."""

    sampler: Sampler  # what answers requests now; another object after `recover`

    async def check(self) -> None:
        """Raise BadInput for whatever can be known to go wrong before anything is started or changed."""

    async def start(self, on_wait: OnWait | None = None) -> None:
        """Start what has to be started and wait until it is healthy."""

    async def push(self, source: WeightSource, version: int) -> None:
        """Make `version` the weights that answer the next request."""

    async def recover(self, reason: str) -> None:
        """After ServerDown: serve again (the caller pushes before it samples), or raise Fault."""
        raise Fault(f"what samples failed: {reason}")

    async def aclose(self) -> None:
        """Stop and reap everything that was started."""


class ServedBackend(Backend):
    """vLLM over HTTP, wherever its servers run."""

    controls: Sequence[ServerControl] = ()
    pusher: Push

    def connect(self, setup: Setup, urls: list[str], key: str, sync_dir: Path) -> None:
        config, sync = setup.config, setup.config.sync
        self.sampler: VllmClient = VllmClient(urls, key, context=setup.context, timeout=config.rollout.request_timeout)
        self.controls = controls = [ServerControl(url, key, sync.timeout) for url in urls]
        nccl = sync.backend == "nccl"
        self.pusher = NcclPush(controls, sync.address, sync.timeout) if nccl else FilePush(controls, sync_dir)
        if served_rank(config.model.lora, setup.hardware, config.train.sharding != "none"):
            self.pusher = AdapterPush(controls, self.pusher, sync_dir)

    async def push(self, source: WeightSource, version: int) -> None:
        """Push as sync.backend says. A refusal by a server whose engine is dead is ServerDown, as its end would be."""
        try:
            await self.pusher.push(source, version)
        except Fault as refusal:
            for control in self.controls:
                try:
                    await control.health()
                except Fault:
                    raise ServerDown(control.url, str(refusal)) from None
            if not isinstance(self.pusher, AdapterPush) or self.pusher.adapter:
                raise
            print(f"ponder: {refusal}; so adapters are merged into what is pushed", file=sys.stderr)
            self.pusher = self.pusher.whole
            await self.pusher.push(source, version)
        self.sampler.version, self.sampler.model = version, self.pusher.adapter

    async def aclose(self) -> None:
        if self.controls:
            await self.sampler.aclose()
            self.pusher.close()
        for control in self.controls:
            await control.aclose()


class VllmBackend(ServedBackend):
    """One vLLM server started here, watched, and started again when it dies."""

    process: ServerProcess | None = None
    restarts = 0

    def __init__(self, setup: Setup, run: RunDir) -> None:
        self.setup, self.config, self.run, self.key = setup, setup.config, run, secrets.token_urlsafe(24)
        # Made right before the process that will remove it: a kill -9 in between must find as little as possible.
        self.sync_dir = check_sync_dir(self.config.sync.dir) / f"ponder-{secrets.token_hex(6)}"
        server_spec(setup, self.sync_dir)  # refused now where it can't be placed

    async def check(self) -> None:
        """See that vLLM is installed and the port free, or soon free."""
        check_startable(None)
        until = tenacity.stop_after_delay(PORT_PATIENCE)
        async for attempt in tenacity.AsyncRetrying(stop=until, wait=tenacity.wait_fixed(0.2), reraise=True):
            with attempt:
                check_startable(self.config.server.port)

    async def start(self, on_wait: OnWait | None = None) -> None:
        self.process = await ServerProcess.start(
            server_spec(self.setup, self.sync_dir), log=self.run.path / "server.log", key=self.key,
            hardware=self.setup.hardware, owned_dirs=(self.sync_dir,), timeout=self.config.server.start_timeout,
            on_wait=on_wait,
        )  # fmt: skip
        write_json(self.run.server, [self.process.row])
        self.connect(self.setup, [self.process.url], self.key, self.sync_dir)

    async def recover(self, reason: str) -> None:
        """Start the server again, up to server.max_restarts times."""
        assert self.process is not None
        self.restarts += 1
        most, last = self.config.server.max_restarts, " | ".join(self.process.tail(3))
        if self.restarts > most:
            raise Fault(f"the vLLM server died, server.max_restarts={most} is used up ({reason}); its log ends: {last}")
        print(f"ponder: vLLM server lost ({reason}); starting it again. Its last lines: {last}", file=sys.stderr)
        await super().aclose()
        await self.process.stop()
        await self.start()

    async def aclose(self) -> None:
        await super().aclose()
        if self.process is not None:
            await self.process.stop()
        shutil.rmtree(self.sync_dir, ignore_errors=True)


class RemoteBackend(ServedBackend):
    """vLLM servers that someone else started (`ponder serve`), who also ends them, and that see `sync.dir`."""

    def __init__(self, setup: Setup) -> None:
        self.urls = setup.config.rollout.servers
        key = os.environ.get(KEY_VARIABLE, "")
        if not key:
            raise BadInput(f"rollout.servers={self.urls} need their key in the environment variable {KEY_VARIABLE}")
        self.connect(setup, self.urls, key, check_sync_dir(setup.config.sync.dir))

    async def check(self) -> None:
        for control in self.controls:
            try:
                await control.health()
                await control.weight_version()  # asks for the key, unlike /health
            except (ServerDown, Fault) as error:
                wrong = f"{KEY_VARIABLE} must be what `ponder serve` printed"
                cure = "start it with `ponder serve`" if isinstance(error, ServerDown) else wrong
                raise BadInput(f"rollout.servers: {error}; {cure}") from None

    async def recover(self, reason: str) -> None:
        """Wait for a restarted server; who restarts it is not our business."""
        for _ in range(REMOTE_WAITS):
            with contextlib.suppress(ServerDown, Fault):
                for control in self.controls:
                    await control.health()
                return
            await asyncio.sleep(5)
        raise Fault(f"rollout.servers={self.urls} did not come back within {5 * REMOTE_WAITS} s ({reason})")


class LocalBackend(Backend):
    """Transformers in this process: no server, bit-exact runs."""

    def __init__(self, setup: Setup) -> None:
        from rl.model import load_policy
        from rollout.transformers_sampler import TransformersSampler

        # sdpa, since decoding needs a cache and a mask, which the learner's packed attention refuses
        wanted, pad_id = setup.config.model, setup.template.stop_ids[0]
        model, _ = load_policy(wanted.path, wanted.dtype, setup.config.seed, attention="sdpa")
        self.sampler: TransformersSampler = TransformersSampler(model, context=setup.context, pad_id=pad_id)

    async def push(self, source: WeightSource, version: int) -> None:
        self.sampler.load(source.tensors(), version)

    async def aclose(self) -> None:
        await self.sampler.aclose()


def choose_backend(setup: Setup, run: RunDir, replay: bool = False) -> Backend:
    """The back end that the configuration asks for, not started yet."""
    if replay:
        return Backend()
    if setup.config.sampler == "transformers":
        return LocalBackend(setup)
    return RemoteBackend(setup) if setup.config.rollout.servers else VllmBackend(setup, run)


def server_spec(setup: Setup, sync_dir: Path, weights: bool = False) -> ServerSpec:
    """The server to train with, of random weights or the model's; BadInput where it and the learner don't fit."""
    config, server, gpus = setup.config, setup.config.server, setup.hardware.gpus
    here = setup.hardware, setup.context, setup.ranks
    placement = place(config, *here) if gpus else Placement([], serving_gpus(config, 0))
    placement.check()
    share, nccl = placement.server_share or server.gpu_memory_utilization, config.sync.backend == "nccl"
    return ServerSpec(
        model=config.model.path, dtype=config.model.dtype, max_model_len=setup.context, seed=config.seed,
        port=server.port or free_port(), sync_dir=None if nccl else str(sync_dir), nccl=nccl,
        load_format="auto" if weights else "dummy",
        kv_cache_gb=server.kv_cache_gb, gpu_memory_utilization=share, gpus=placement.server_gpus,
        eager=server.eager, threads=server.threads, fp32_head=server.fp32_head and config.model.dtype == "bfloat16",
        lora_rank=served_rank(config.model.lora, setup.hardware, config.train.sharding != "none"),
    )  # fmt: skip


def check_sync_dir(directory: str) -> Path:
    """`sync.dir` as a path, or BadInput where it can't be written."""
    path = Path(directory)
    if not path.is_dir() or not os.access(path, os.W_OK):
        raise BadInput(f"sync.dir={directory} is not a directory that can be written; name one that both sides see")
    return path


async def serve(config: Config) -> None:
    """`ponder serve`: the rollout server alone, for a learner elsewhere on this host. Serves until SIGINT or SIGTERM
    (Stopped), or until the server dies (Fault)."""
    from rl.model import has_weights

    setup, run = prepare(config), RunDir(config.run_dir)
    key = os.environ.get(KEY_VARIABLE) or secrets.token_urlsafe(24)
    sync_dir, log = check_sync_dir(config.sync.dir), run.path / "server.log"
    spec = server_spec(setup, sync_dir, weights=has_weights(config.model.path))
    print(f"starting vLLM on {config.model.path}; log in {log}", flush=True)
    starting = ServerProcess.start(spec, log=log, key=key, hardware=setup.hardware, timeout=config.server.start_timeout)
    with StopSignal() as stop:
        server = await stop.guard(starting)
        try:
            write_json(run.server, [server.row])
            print(f"serving at {server.url}; in the learner's environment: {KEY_VARIABLE}={key}")
            how = f"sync.dir={sync_dir}" if config.sync.backend == "file" else f"sync.backend={config.sync.backend}"
            print(f"and on its command line: rollout.servers='[\"{server.url}\"]' {how}", flush=True)
            while server.alive():
                await stop.guard(asyncio.sleep(1))
            raise Fault(f"the vLLM server died; its log {log} ends with: {' | '.join(server.tail(3))}")
        finally:
            await server.stop()
