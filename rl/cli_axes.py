"""`ponder scaling` and `ponder report`: the two axes, fitted and drawn, and a run as one page."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rewards.errors import BadInput

SCALING_EXAMPLE = "Example: ponder scaling runs/axes --x tokens --out pictures"
REPORT_EXAMPLE = "Example: ponder report runs/quickstart"

XName = StrEnum("XName", ["flops", "tokens", "steps", "seconds"])  # the keys of rl.evaluation.training.COMPUTE


def scaling(
    sources: Annotated[list[Path], typer.Argument(metavar="RUN|EVAL…", help="run directories, evaluation files")],
    out: Annotated[Path | None, typer.Option(help="directory of the pictures; default: the run's")] = None,
    x: Annotated[XName, typer.Option(help="what the training axis counts")] = XName.flops,
    as_json: Annotated[bool, typer.Option("--json", help="print figures as JSON")] = False,
) -> None:
    """Fit and draw accuracy against training compute and against thinking, and say whether each rises."""
    from rl.evaluation.axes import read_axes, summarise, to_json
    from rl.evaluation.figures import thinking_figure, train_figure

    axes = read_axes(sources, x.value)
    folder = out or (sources[0] if len(sources) == 1 and sources[0].is_dir() else Path())
    figures = {"train": train_figure(axes)} if axes.train else {}
    figures |= {"thinking": thinking_figure(axes)} if axes.thinking else {}
    paths = {folder / f"scaling-{name}.{kind}": figure for name, figure in figures.items() for kind in ("png", "svg")}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, figure in paths.items():
            figure.savefig(path)
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise BadInput(f"can't write {error.filename}: {error.strerror}; choose another --out") from None
    if as_json:
        print(json.dumps(to_json(axes), indent=1, allow_nan=False))
    print(*([] if as_json else summarise(axes)), *map(str, paths), sep="\n", file=sys.stderr if as_json else sys.stdout)


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run directory, finished or not")],
    out: Annotated[Path | None, typer.Option(help="HTML file to write; default: report.html in the run")] = None,
) -> None:
    """Write what a run did as one HTML file that needs nothing else: figures, axes, chains, configuration."""
    from rl.report.build import build_report

    print(build_report(run, out))
