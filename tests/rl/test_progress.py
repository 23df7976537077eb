"""The progress line: the time left is told by the steps, not by what came before them."""

from __future__ import annotations

import pytest

from rl import views
from rl.views import RunProgress


def test_the_time_left_leaves_out_what_came_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(views.time, "monotonic", lambda: now[0])
    line = RunProgress(total=12, done=2)
    now[0] = 1000.0  # a server started, the base was evaluated
    line.chains(1, 256)
    now[0] = 1030.0
    line.chains(256, 256)
    line.done = 3
    assert line.left() == "0:04:30"  # nine steps of 30 s
    line.chains(1, 256)
    now[0] = 1060.0
    line.done = 4
    assert line.left() == "0:04:00"
