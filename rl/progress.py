"""What a person sees while a run goes on: one live line on a terminal, one plain line a step elsewhere."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Row = dict[str, Any]
PLAIN_EVERY = 10.0
"""Seconds between the lines of an evaluation where there is no terminal."""


class Live:
    """A bar on a terminal, and lines that stay; `done` of `total` are done."""

    def __init__(self, total: int, done: int, description: str, *columns: ProgressColumn) -> None:
        self.console = Console(stderr=True)
        self.total, self.done, self.first = total, done, done
        self.began = time.monotonic()
        off = not self.console.is_terminal
        self.live = Progress(*columns, console=self.console, disable=off, transient=True)
        self.task = self.live.add_task(description, total=total, completed=done, figures="")

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.live.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def left(self) -> str:
        """h:mm:ss that the rest takes at the pace so far."""
        pace = (time.monotonic() - self.began) / max(1, self.done - self.first)
        return str(timedelta(seconds=int(pace * (self.total - self.done))))


class RunProgress(Live):
    """The progress line of a training run: step, reward, pass@1, tokens/s, time left."""

    def __init__(self, total: int, done: int = 0) -> None:
        text = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
        super().__init__(total, done, "starting", SpinnerColumn(), *text, TimeElapsedColumn())

    def phase(self, text: str) -> None:
        """Name what is going on now; on a terminal only."""
        self.live.update(self.task, description=text)

    def waiting(self, seconds: float, line: str) -> None:
        """A server that is starting: seconds so far, its newest log line."""
        self.phase(f"vLLM starting, {seconds:.0f} s")

    def chains(self, finished: int, total: int) -> None:
        """How far the rollout of this step is."""
        if self.done == self.first and finished == 1:
            self.began = time.monotonic()  # what came before the first step says nothing about the others
        self.phase(f"step {self.done + 1}/{self.total} rollout {finished}/{total}")

    def evaluated(self, finished: int, total: int) -> None:
        """How far an evaluation is."""
        self.phase(f"evaluating {finished}/{total}")

    def step(self, row: Row) -> None:
        """One step is done."""
        self.reached(int(row["step"]), _figures(row))

    def reached(self, step: int, figures: str) -> None:
        """So many steps are done."""
        self.done = step
        self.say(f"step {step}/{self.total}  {figures}  left {self.left()}")
        self.live.update(self.task, completed=step, figures=f"left {self.left()}")


class ChainProgress(Live):
    """How far an evaluation is: a live bar on a terminal, else a plain line every PLAIN_EVERY seconds."""

    def __init__(self, total: int, done: int) -> None:
        columns = Progress.get_default_columns()[:-1]
        super().__init__(total, done, "chains", *columns, MofNCompleteColumn(), TimeRemainingColumn())
        self.said = self.began

    def chain(self) -> None:
        """One more is done."""
        self.done += 1
        self.live.update(self.task, completed=self.done)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.said >= PLAIN_EVERY:
            self.said = now
            self.say(f"chains {self.done}/{self.total}  left {self.left()}")


def _figures(row: Row) -> str:
    reward, accuracy = ("-" if row[k] is None else f"{row[k]:.3f}" for k in ("reward/mean", "accuracy/pass@1"))
    rate = row["tokens/generated"] / max(row["time/rollout"], 1e-9)
    mismatch = row["mismatch_kl/fresh"] or 0
    return f"reward {reward}  pass@1 {accuracy}  {rate:,.0f} tokens/s  mismatch KL {mismatch:.1e}"
