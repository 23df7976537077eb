"""`ponder serve` for learners that come and go, however they end."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from rl.metrics import read_metrics
from tests.slow.commands import SMALL, Command, Household, assert_whole, fill, household, saved_step, survivors

KEY = {"PONDER_API_KEY": "the-key-of-this-test"}


@dataclass
class Served:
    """A server that runs, and where."""

    house: Household
    command: Command
    remote: tuple[str, ...]
    """Overrides for its learners."""
    small: bool
    """Whether the sync directory has little room."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`ponder serve`; SIGTERM ends it, with nothing left."""
    with household(tmp_path_factory.mktemp("served")) as house:
        small = house.small_disk(house.sync, 16)
        command = house.start("serve", *SMALL, *house.places("server"), env=KEY)
        command.until(lambda: "serving at " in command.text)
        url = re.findall(r"serving at (\S+);", command.text)[0]
        yield Served(house, command, (f'rollout.servers=["{url}"]', "train.steps=4"), small)
        house.look()
        command.signal(signal.SIGTERM)
        command.ends(143, "SIGTERM", within=30)
        house.is_empty()


def test_another_key_is_refused_in_a_line(served: Served) -> None:
    learner = served.house.train("refused", *served.remote, env={"PONDER_API_KEY": "another"})
    learner.ends(2, "401", "PONDER_API_KEY")


def test_a_learner_that_is_killed_in_a_push_is_followed_by_one_that_goes_on(served: Served) -> None:
    """The server stands paused in the middle of an update then, the new weights not yet or already in its layers."""
    house, run = served.house, served.house.run("killed")
    learner = house.train("killed", *served.remote, env=KEY, hold="push:3")
    for point in ("push:3", "pushed:3"):
        learner.held(point)
        house.kill(learner.process.pid)
        learner.ends(-9)
        assert saved_step(run) == 2
        learner = house.resume("killed", env=KEY, hold="pushed:3" if point == "push:3" else "")
    kept = survivors(run)
    learner.ends(0)
    assert_whole(run, 4, kept)
    assert max(row["mismatch_kl/fresh"] for row in read_metrics(run.metrics)) <= 1e-6
    assert served.command.process.poll() is None


def test_a_full_sync_directory_stops_the_run_in_a_line_without_loss(served: Served) -> None:
    if not served.small:
        pytest.skip("mounting a small disk takes root")
    house, run = served.house, served.house.run("full")
    learner = house.train("full", *served.remote, "train.checkpoint_every=100", env=KEY, hold="learn:3")
    learner.held("learn:3")
    filler = fill(house.sync / "filler")
    learner.go("learn:3")
    learner.ends(2, f"sync.dir={house.sync}", "bytes free")
    kept = run.metrics.read_bytes()
    assert saved_step(run) == 3  # learnt and recorded, though nobody could sample from it
    filler.unlink()
    house.resume("full", env=KEY).ends(0)
    assert_whole(run, 4, kept)
