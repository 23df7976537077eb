"""`ponder report RUN`: one self-contained HTML file with what a run did, for any run directory, finished or not."""

import unicodedata
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
from markupsafe import Markup

from rewards.errors import BadInput
from rl.evaluator import headline
from rl.report import figures
from rl.report.figures import BEHAVIOUR, PANELS, STYLE, draw_axes, draw_levels, draw_panels
from rl.report.record import find_examples, read_record
from rl.rundir import write_atomic


def build_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write a run's report to `out`, else to report.html in the run, and return the path. Raises BadInput."""
    path = out or run_dir / "report.html"
    page = render(read_record(run_dir))
    try:
        write_atomic(path, page)
    except (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError) as error:
        raise BadInput(f"can't write {path}: {error.strerror}; choose another --out") from None
    return path


@mpl.rc_context(STYLE)
def render(record: dict[str, Any]) -> str:
    """The page; its words are in page.html.j2. All it prints is printable, and escaped unless it is our own markup."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else printable(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(figures, name) for name in ("number", "si", "share", "points", "duration")}
    rows, bound = record["rows"], record["config"].mismatch_bound if record["config"] else None
    return environment.get_template("page.html.j2").render(
        record,
        axes=draw_axes(record["run"].path),
        behaviour=draw_panels(BEHAVIOUR, rows),
        bound=bound,
        draw_levels=draw_levels,
        examples=find_examples(record),
        headline=headline,
        panels=draw_panels(PANELS, rows, bound),
        titles=[panel.title for panel in PANELS],
    )


def printable(text: str) -> str:
    """The text with control, direction and surrogate characters written as escapes: none may act on the page."""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in {"Cc", "Cf", "Cs"} else f"\\u{ord(c):04x}" for c in text
    )
