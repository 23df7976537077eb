"""`ponder report RUN`: one self-contained HTML file with what a run did, for any run directory, finished or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from rewards.errors import BadInput
from rl.report import numbers
from rl.report.axes import draw_axes
from rl.report.chains import Example, pair_chains, pick_examples
from rl.report.difficulty import by_difficulty
from rl.report.figures import css_variables, styled
from rl.report.headline import sentence, tiles
from rl.report.panels import BEHAVIOUR, PANELS, draw_panels, silent_panels
from rl.report.record import Record, read_record
from rl.rundir import write_atomic
from rollout.prompt import Template

FILE = "report.html"


@dataclass(frozen=True)
class Examples:
    """What the section on chains shows: examples and counts by outcome, or why there is nothing."""

    shown: Sequence[Example] = ()
    counts: dict[str, int] | None = None
    missing: str = ""


def build_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write the report of a run directory and return its path (`out`, else report.html in the run).

    Raises BadInput where `run_dir` holds no run, a file of it is broken, or the page can't be written.
    """
    path = out or run_dir / FILE
    page = render(read_record(run_dir))
    try:
        write_atomic(path, page)
    except (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError) as error:
        raise BadInput(f"can't write {path}: {error.strerror}; choose another --out") from None
    return path


def render(record: Record) -> str:
    """The page."""
    with styled():
        return _environment().get_template("page.html.j2").render(**_content(record))


def _content(record: Record) -> dict[str, Any]:
    """Everything the template names."""
    comparison, config = record.comparison, record.config
    return {
        "record": record,
        "comparison": comparison,
        "sentence": sentence(record),
        "tiles": tiles(record),
        "axes": draw_axes(record),
        "difficulty": by_difficulty(comparison) if comparison else [],
        "behaviour": draw_panels(BEHAVIOUR, record.rows),
        "changes": compare_traits(record.changes or {}),
        "controls": (record.changes or {}).get("controls") or [],
        "beyond": (record.changes or {}).get("beyond_patience"),
        "panels": draw_panels(PANELS, record.rows, config.mismatch_bound if config else None),
        "silent": silent_panels(PANELS, record.rows),
        "examples": find_examples(record),
        "config_text": record.run.config.read_text(),
        "setup": setup_rows(record),
    }


def find_examples(record: Record) -> Examples:
    """Chains of both models on the same problems; in words what is missing where there are none."""
    if record.comparison is None:
        return Examples(missing="Two evaluations of the same problems are needed; this run has not made them yet.")
    groups = [record.chains(label) for label in record.comparison.labels]
    if groups[0] is None or groups[1] is None:
        return Examples(missing="The evaluations' chains (eval/*.samples.jsonl.zst) are not in this directory.")
    if record.config is None:
        return Examples(missing=f"The tokenizer is not known: {record.config_problem}")
    model = record.config.model
    saved = next(record.run.checkpoints.glob("step-*/tokenizer.json"), None)  # as good, and no hub is asked for it
    path = saved.parent if saved else model.path
    try:
        template = Template.load(path, think=model.think, system_prompt=model.system_prompt)
    except BadInput as error:
        return Examples(missing=f"Chains are kept as ids, and the model's tokenizer is not here: {error}")
    pairs = pair_chains(groups[0], groups[1])
    return Examples(pick_examples(pairs, template), {outcome: len(found) for outcome, found in pairs.items()})


@dataclass(frozen=True)
class Traits:
    """Means of the chains' traits: `rows` hold a (base, trained) pair for each scope, all chains first."""

    scopes: Sequence[str]
    rows: Sequence[tuple[str, list[tuple[Any, Any]]]]


def compare_traits(changes: dict[str, Any]) -> Traits | None:
    """The traits of eval/changes.json side by side, overall and by difficulty; None where it has none."""
    sides = [changes.get(side) or {} for side in ("base", "final")]
    levels = list(sides[0].get("by_difficulty", {}))
    scopes = [sides, *([side.get("by_difficulty", {}).get(level, {}) for side in sides] for level in levels)]
    names = [name for name, value in sides[0].items() if not isinstance(value, dict)]
    rows = [(name, [(base.get(name), final.get(name)) for base, final in scopes]) for name in names]
    return Traits(["all", *(f"difficulty {level}" for level in levels)], rows) if rows else None


def setup_rows(record: Record) -> list[tuple[str, str]]:
    """(name, value) of what a reader needs to run this again."""
    summary, results = record.summary, list(record.evaluations.values())
    versions = summary.get("versions") or (results[-1].get("versions") if results else None) or {}
    commands = [*summary.get("commands", []), *(result.get("command") for result in results)]
    seeds = summary.get("seeds") or ([record.config.seed] if record.config else [])
    rows = [("command", text) for text in dict.fromkeys(commands) if text]
    rows += [("seeds", ", ".join(map(str, seeds)))]
    rows += [(name, str(summary[name])) for name in ("sampler", "world_size", "sharding", "threads") if name in summary]
    return rows + [(name, str(version)) for name, version in versions.items()]


def _environment() -> jinja2.Environment:
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["style"] = css_variables() + Markup((folder / "page.css").read_text())
    for shown in (numbers.number, numbers.share, numbers.duration, numbers.accuracy, numbers.interval, numbers.points):
        environment.filters[shown.__name__] = shown
    return environment
