"""`ponder serve`: the rollout server alone, for a learner elsewhere on this host."""

import asyncio
import os
import secrets

from rewards.errors import Fault
from rl.backend import check_sync_dir, server_spec
from rl.build import prepare
from rl.config import Config
from rl.exits import StopSignal
from rl.model import has_weights
from rl.rundir import RunDir, write_json
from rollout.server.middleware import KEY_VARIABLE
from rollout.server.process import ServerProcess


async def serve(config: Config) -> None:
    """Serve until SIGINT or SIGTERM (Stopped), or until the server dies (Fault)."""
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
