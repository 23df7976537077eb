"""What a person sees. In words: the macros of views.j2, filled in; one is docs/configuration.md, which so can't drift.
While a run goes on: one live line on a terminal, one plain line a step elsewhere."""

import time
from datetime import timedelta
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import jinja2
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from rl.config import Config, section_of, walk_fields

PLAIN_EVERY = 10.0  # seconds between the lines of an evaluation where there is no terminal


def words(view: str, *data: Any) -> str:
    """A macro of views.j2, filled in."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.do"],
    )  # fmt: skip
    return str(getattr(environment.get_template("views.j2").module, view)(*data))


def configuration_markdown() -> str:
    """One table a section, in the order of rl/config.py, from the configuration's own fields."""
    sections: dict[str, tuple[str, list[Any]]] = {}
    for key, info in walk_fields(Config):
        name, kind = key.rpartition(".")[0], Config
        for part in filter(None, name.split(".")):
            kind = section_of(kind.model_fields[part].annotation)  # type: ignore[assignment]
        about = " ".join((kind.__doc__ or "").split()) if name else ""
        sections.setdefault(name, (about, []))[1].append((key, info, _type_name(info.annotation)))
    return words("configuration", sections)


def _type_name(annotation: Any) -> str:
    if annotation is type(None):
        return "null"
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(_type_name(arg) for arg in get_args(annotation))
    if section_of(annotation) is not None:
        return "section"
    return annotation.__name__ if get_origin(annotation) is None else str(annotation).replace("typing.", "")


class RunProgress(Progress):
    """`done` of `total` steps (of an evaluation: chains) are done; a bar on a terminal, and lines that stay."""

    def __init__(self, total: int, done: int = 0) -> None:
        console, figures = Console(stderr=True), TextColumn("{task.fields[figures]}")
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), figures, TimeElapsedColumn())
        super().__init__(*columns, console=console, disable=not console.is_terminal, transient=True)
        self.total, self.done, self.first = total, done, done
        self.began = self.said = time.monotonic()
        self.bar = self.add_task("starting", total=total, completed=done, figures="")

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def left(self) -> str:
        """h:mm:ss that the rest takes at the pace so far."""
        pace = (time.monotonic() - self.began) / max(1, self.done - self.first)
        return str(timedelta(seconds=int(pace * (self.total - self.done))))

    def phase(self, text: str) -> None:
        """Name what is going on now; on a terminal only."""
        self.update(self.bar, description=text)

    def waiting(self, seconds: float, line: str) -> None:
        """A server that is starting: seconds so far, its newest log line."""
        self.phase(f"vLLM starting, {seconds:.0f} s")

    def chains(self, finished: int, total: int) -> None:
        if self.done == self.first and finished == 1:
            self.began = time.monotonic()  # what came before the first step says nothing about the others
        self.phase(f"step {self.done + 1}/{self.total} rollout {finished}/{total}")

    def step(self, row: dict[str, Any]) -> None:
        reward, accuracy = ("-" if row[k] is None else f"{row[k]:.3f}" for k in ("reward/mean", "accuracy/pass@1"))
        rate = row["tokens/generated"] / max(row["time/rollout"], 1e-9)
        mismatch = f"mismatch KL {row['mismatch_kl/fresh'] or 0:.1e}"
        self.reached(row["step"], f"reward {reward}  pass@1 {accuracy}  {rate:,.0f} tokens/s  {mismatch}")

    def reached(self, step: int, figures: str) -> None:
        self.done = step
        self.say(f"step {step}/{self.total}  {figures}  left {self.left()}")
        self.update(self.bar, completed=step, figures=f"left {self.left()}")

    def chain(self) -> None:
        """One more chain of an evaluation is done; without a terminal a plain line every PLAIN_EVERY seconds."""
        self.done += 1
        text, left = f"chains {self.done}/{self.total}", f"left {self.left()}"
        self.update(self.bar, description=text, completed=self.done, figures=left)
        if self.disable and time.monotonic() - self.said >= PLAIN_EVERY:
            self.said = time.monotonic()
            self.say(f"{text}  {left}")
