"""A server that may not come back: everything is saved, exit 3; a stop in the middle of a rollout is taken at once."""

from __future__ import annotations

import signal
import time

import pytest

from rl.metrics import read_metrics
from tests.slow.commands import Household, saved_step, server_pid, survivors


@pytest.mark.timeout(1200)  # a busy machine takes 100 s for a server
def test_without_restarts_the_run_stops_saved_and_a_later_one_goes_on(house: Household) -> None:
    run = house.run("run")
    limits = ("train.steps=6", "train.checkpoint_every=100", "server.max_restarts=0")
    command = house.train("run", *limits, hold="push:2")
    command.held("push:2")
    house.kill(server_pid(run))
    command.go("push:2")
    command.ends(3, "the vLLM server died", "server.max_restarts=0")
    house.is_empty()
    assert [row["step"] for row in read_metrics(run.metrics)] == [1, 2]  # it was learnt before it was pushed
    assert saved_step(run) == 2
    kept = survivors(run)

    command = house.resume("run", hold="rollout:4")
    command.held("rollout:4")
    house.look()
    command.signal(signal.SIGTERM)
    command.go("rollout:4")
    asked = time.monotonic()
    command.ends(143, "SIGTERM after step 3")
    assert time.monotonic() - asked < 20
    house.is_empty()
    assert saved_step(run) == 3
    assert survivors(run).startswith(kept)
    assert max(row["mismatch_kl/fresh"] for row in read_metrics(run.metrics)) <= 1e-6  # pushed before it sampled
