"""`ponder scaling` and `ponder report`: the two axes, fitted and drawn, and a run as one page."""

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rewards.errors import BadInput

if TYPE_CHECKING:
    from rl.evaluation.axes import Axes

SCALING_EXAMPLE = "Example: ponder scaling runs/axes --x tokens --format svg"

REPORT_EXAMPLE = "Example: ponder report runs/quickstart"


class XName(StrEnum):
    """What --x takes: the keys of rl.evaluation.points.COMPUTE."""

    flops = "flops"
    tokens = "tokens"
    steps = "steps"
    seconds = "seconds"


class FormatName(StrEnum):
    """What --format takes."""

    png = "png"
    svg = "svg"
    both = "both"


def scaling(
    sources: Annotated[list[Path], typer.Argument(metavar="RUN|EVAL…", help="run directories, evaluation files")],
    out: Annotated[
        str | None, typer.Option(help="DIR/ or prefix of the pictures; default: the run, if it can be written")
    ] = None,
    x: Annotated[XName, typer.Option(help="what the training axis counts")] = XName.flops,
    format: Annotated[FormatName, typer.Option(help="kind of picture")] = FormatName.both,
    as_json: Annotated[bool, typer.Option("--json", help="print figures as JSON")] = False,
) -> None:
    """Fit and draw accuracy against training compute and against thinking, and say whether each rises."""
    from rl.evaluation.axes import as_json as axes_json
    from rl.evaluation.axes import read_axes, summarise

    axes = read_axes(sources, x.value)
    paths = _draw(axes, _prefix(out, sources), ("png", "svg") if format is FormatName.both else (format.value,))
    if as_json:
        print(json.dumps(axes_json(axes), indent=1, allow_nan=False))
    print(*([] if as_json else summarise(axes)), *map(str, paths), sep="\n", file=sys.stderr if as_json else sys.stdout)


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run directory, finished or not")],
    out: Annotated[Path | None, typer.Option(help="HTML file to write; default: report.html in the run")] = None,
) -> None:
    """Write what a run did as one HTML file that needs nothing else: figures, axes, chains, configuration."""
    from rl.report.build import build_report

    print(build_report(run, out))


def _prefix(out: str | None, sources: list[Path]) -> Path:
    """What the pictures' names begin with."""
    if out is None:
        own = len(sources) == 1 and sources[0].is_dir() and os.access(sources[0], os.W_OK)
        return (sources[0] if own else Path()) / "scaling"
    return Path(out) / "scaling" if Path(out).is_dir() or out.endswith("/") else Path(out)


def _draw(axes: Axes, prefix: Path, formats: tuple[str, ...]) -> list[Path]:
    """Write the pictures of the axes at hand. Raises BadInput where they can't be written."""
    from rl.evaluation.figures import thinking_figure, train_figure

    figures = [("train", train_figure)] if axes.train else []
    figures += [("thinking", thinking_figure)] if axes.thinking else []
    paths = []
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        for name, figure in figures:
            drawn = figure(axes)
            for suffix in formats:
                paths.append(prefix.with_name(f"{prefix.name}-{name}.{suffix}"))
                drawn.savefig(paths[-1], metadata={"Date": None} if suffix == "svg" else None)
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise BadInput(f"can't write {error.filename}: {error.strerror}; choose another --out") from None
    return paths
