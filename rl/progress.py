"""What a person sees while a run goes on: one live line on a terminal, one plain line a step elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Row = dict[str, Any]
PLAIN_EVERY = 10.0
"""Seconds between the lines of an evaluation where there is no terminal."""


class RunProgress:
    """The progress line of a training run: step, reward, pass@1, tokens/s, time left."""

    def __init__(self, total: int, done: int = 0) -> None:
        self.console = Console(stderr=True)
        self.total, self.done, self.first = total, done, done
        self.began = time.monotonic()
        self.live = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self.task = self.live.add_task("starting", total=total, completed=done, figures="")

    def __enter__(self) -> RunProgress:
        self.live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.live.stop()

    def phase(self, text: str) -> None:
        """Name what is going on now; on a terminal only."""
        self.live.update(self.task, description=text)

    def waiting(self, seconds: float, line: str) -> None:
        """A server that is starting: seconds so far, its newest log line."""
        self.phase(f"vLLM starting, {seconds:.0f} s")

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.console.is_terminal:
            self.live.console.print(text, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def chains(self, finished: int, total: int) -> None:
        """How far the rollout of this step is."""
        self.live.update(self.task, description=f"step {self.done + 1}/{self.total} rollout {finished}/{total}")

    def evaluated(self, finished: int, total: int) -> None:
        """How far an evaluation is."""
        self.phase(f"evaluating {finished}/{total}")

    def step(self, row: Row) -> None:
        """One step is done."""
        self.done = int(row["step"])
        self.say(f"step {self.done}/{self.total}  {_figures(row)}  left {self._left()}")
        self.live.update(self.task, completed=self.done, figures=f"left {self._left()}")

    def _left(self) -> str:
        per_step = (time.monotonic() - self.began) / max(1, self.done - self.first)
        return _clock(per_step * (self.total - self.done))


class ChainProgress:
    """How far an evaluation is: a live bar on a terminal, else a plain line every PLAIN_EVERY seconds."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done, self.first = total, done, done
        self.began = self.said = time.monotonic()
        console = Console(stderr=True)
        columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
        self.live = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self.task = self.live.add_task("chains", total=total, completed=done)

    def __enter__(self) -> ChainProgress:
        self.live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.live.stop()

    def chain(self) -> None:
        """One more is done."""
        self.done += 1
        self.live.update(self.task, completed=self.done)
        now = time.monotonic()
        if not self.live.console.is_terminal and now - self.said >= PLAIN_EVERY:
            self.said = now
            left = (now - self.began) / (self.done - self.first) * (self.total - self.done)
            print(f"chains {self.done}/{self.total}  left {_clock(left)}", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _figures(row: Row) -> str:
    rate = row["tokens/generated"] / max(row["time/rollout"], 1e-9)
    return (
        f"reward {_number(row['reward/mean'])}  pass@1 {_number(row['accuracy/pass@1'])}  "
        f"{rate:,.0f} tokens/s  mismatch KL {row['mismatch_kl/fresh'] or 0:.1e}"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
