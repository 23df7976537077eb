"""What a push promises, through a file and over NCCL: the order of calls, and what is left when something breaks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rewards.errors import Fault
from rl.nccl import NcclPush
from rl.sync import FilePush, Push
from rollout.client import ServerDown
from tests.rl.wire import SOURCE, Control, World

ORDER = ["/init_weight_transfer_engine", "/pause", "/start_weight_update", "/update_weights", "/finish_weight_update",
         "label", "/resume"]  # fmt: skip
both = pytest.mark.parametrize("kind", ["file", "nccl"])


def pusher(kind: str, controls: list[Control], directory: Path) -> Push:
    if kind == "file":
        return FilePush(controls, directory)
    return NcclPush(controls, "127.0.0.1", 5.0, World(controls).join)


@both
async def test_order_of_a_push(kind: str, tmp_path: Path) -> None:
    log: list[str] = []
    control = Control(log)
    await pusher(kind, [control], tmp_path).push(SOURCE, 5)
    asked = ["/get_world_size"] if kind == "nccl" else []
    assert log == [f"s {call}" for call in [*asked, *ORDER]]
    assert control.label == 5
    assert control.received.keys() == SOURCE.weights.keys()
    assert all(torch.equal(control.received[name], tensor) for name, tensor in SOURCE.weights.items())
    assert list(tmp_path.iterdir()) == []


@both
async def test_no_server_starts_before_all_are_paused_nor_resumes_before_all_are_done(
    kind: str, tmp_path: Path
) -> None:
    log: list[str] = []
    await pusher(kind, [Control(log, "a"), Control(log, "b")], tmp_path).push(SOURCE, 1)
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for position, call in enumerate(log):
        first.setdefault(call.split()[1], position)
        last[call.split()[1]] = position
    assert last["/pause"] < first["/start_weight_update"]
    assert last["label"] < first["/resume"]


@both
@pytest.mark.parametrize("stage", ORDER[1:5])
@pytest.mark.parametrize("error", [Fault("refused"), ServerDown("http://bad", "gone")], ids=["fault", "dead"])
async def test_a_failure_resumes_every_server_leaves_no_file_and_the_next_push_gets_through(
    kind: str, tmp_path: Path, stage: str, error: Exception
) -> None:
    log: list[str] = []
    controls = [Control(log, "good"), bad := Control(log, "bad", {stage: error})]
    push = pusher(kind, controls, tmp_path)
    with pytest.raises(type(error)):
        await push.push(SOURCE, 1)
    assert {"good /resume", "bad /resume"} <= set(log)
    assert list(tmp_path.iterdir()) == []
    bad.fails.clear()
    await push.push(SOURCE, 2)
    assert [(control.label, len(control.received)) for control in controls] == [(2, 2), (2, 2)]


@both
async def test_an_update_that_a_killed_learner_left_open_is_ended_first(kind: str, tmp_path: Path) -> None:
    log: list[str] = []
    control = Control(log)
    control.updating = True
    await pusher(kind, [control], tmp_path).push(SOURCE, 2)
    assert control.label == 2
    assert control.received.keys() == SOURCE.weights.keys()
    again = ["/start_weight_update", "/update_weights"]
    assert log[-9:] == [f"s {call}" for call in [*ORDER[:2], *again, *ORDER[2:]]]


@both
async def test_a_wrong_label_is_a_fault(kind: str, tmp_path: Path) -> None:
    control = Control([])
    control.label_offset = -1
    with pytest.raises(Fault, match=r"http://s labels its weights 4 after a push of 5"):
        await pusher(kind, [control], tmp_path).push(SOURCE, 5)
    assert control.log[-1] == "s /resume"
