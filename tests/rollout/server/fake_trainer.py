"""Stands in for a trainer that is going to be killed: starts a server, prints what there is to know, waits.

usage: fake_trainer.py JSON, with spec, log, owned and argv (null = vLLM)
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

from rollout.server.argv import ServerSpec
from rollout.server.hardware import probe
from rollout.server.process import ServerProcess


def main() -> None:
    job = json.loads(sys.argv[1])
    server = asyncio.run(
        ServerProcess.start(
            ServerSpec(**job["spec"]),
            log=Path(job["log"]),
            key="key",
            hardware=probe(),
            owned_dirs=[Path(job["owned"])],
            argv=job["argv"],
        )
    )
    worker = os.fork()  # a forked worker holds the trainer's end of the pipe open
    if worker:
        print(json.dumps({"server": server.pid, "worker": worker}), flush=True)
    time.sleep(120)


if __name__ == "__main__":
    main()
