"""`ponder report RUN`: one self-contained HTML file with what a run did, for any run directory, finished or not.
The page; what it shows: all that the directory holds, and chains of both models on the same problems, side by side."""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import zstandard
from markupsafe import Markup

from rewards.answer import CLOSE, OPEN, after_thinking
from rewards.errors import BadInput, Fault
from rewards.types import Problem
from rl.evaluation.axes import read_cells
from rl.evaluator import headline, read_groups
from rl.metrics import read_metrics
from rl.report.figures import BEHAVIOUR, MINUS, PANELS, STYLE, THIN, draw_axes, draw_levels, draw_panels, number, si
from rl.rundir import RunDir, open_run, write_atomic
from rollout.prompt import Template, read_json
from rollout.types import Chain, Group

PICKS = {"gained": 3, "both right": 1, "both wrong": 2, "lost": 1}  # what became of a problem -> how many are shown
OUTCOMES = {(False, True): "gained", (True, True): "both right", (False, False): "both wrong", (True, False): "lost"}

PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    finalize=lambda value: value if isinstance(value, Markup) else printable(str(value)),
    trim_blocks=True,
    lstrip_blocks=True,
)
PAGES.filters |= {"number": number, "si": si}
PAGES.globals |= {"minus": MINUS, "thin": THIN}

Pair = tuple[Problem, Chain, Chain]  # a problem with a scored chain of each model


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
    rows, bound = record["rows"], record["config"].mismatch_bound if record["config"] else None
    return PAGES.get_template("page.html.j2").render(
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


def read_record(path: Path) -> dict[str, Any]:
    """Everything below `path`; whatever is missing is None or empty. Raises BadInput where it is no run, or broken.
    {run, config: None where it is another version's, config_problem: why, rows: of metrics.jsonl, summary: {} while the
    run goes on, evaluations: {label: file}, changes: eval/changes.json, comparison: {labels: of two files, names: for a
    reader, cells: [(before, after)] of each task and prompt, without a cap}}. Compared are base and final where the
    run has them, else the first and the last evaluation along the way."""

    def in_order(file: Path) -> tuple[bool, bool, int, str]:  # the base, steps by their numbers, the final one
        return file.stem == "final", file.stem != "base", int(*re.findall(r"step-(\d+)$", file.stem)), file.stem

    run, config, problem = RunDir(path), None, ""
    try:
        config = open_run(path)[1]
    except BadInput as error:
        if not run.config.is_file():
            raise
        problem = str(error)
    contents: dict[str, dict[str, Any]] = {}
    for file in sorted(run.eval.glob("*.json"), key=in_order):
        contents[file.stem] = read_json(file)
        if file.stem != "changes":
            read_cells(file)  # says what is wrong with it
    changes, summary = contents.pop("changes", {}), read_json(run.summary)
    along = [label for label in contents if re.fullmatch(r"step-\d+", label)]
    labels = ["base", "final"] if {"base", "final"} <= contents.keys() else [*along[:1], *along[1:][-1:]]
    sides: list[dict[tuple[str, str], list[dict[str, Any]]]] = [{} for _ in labels]
    for label, side in zip(labels, sides, strict=True):
        for cell in contents[label]["cells"]:
            side.setdefault((cell["task"], cell["prompt"]), []).append(cell)
    comparison = None
    if len(sides) == 2 and (both := [key for key in sides[0] if key in sides[1]]):
        names = [label.replace("final", "trained").replace("-", " ") for label in labels]
        cells = [tuple(headline(side[key]) for side in sides) for key in both]
        comparison = {"labels": labels, "names": names, "cells": cells}
    found = {"run": run, "config": config, "config_problem": problem, "rows": read_metrics(run.metrics)}
    return found | {"summary": summary, "evaluations": contents, "changes": changes, "comparison": comparison}


def find_examples(record: dict[str, Any]) -> dict[str, Any]:
    """{counts: by outcome, shown: (outcome, problem, sides)}; {missing: why} where there are none."""
    run, config, comparison = record["run"], record["config"], record["comparison"]
    if comparison is None:
        return {"missing": "Two evaluations of the same problems are needed; this run has not made them yet."}
    if config is None:
        return {"missing": f"The tokenizer is not known: {record['config_problem']}"}
    try:
        before, after = (read_groups(run, label) for label in comparison["labels"])
    except (OSError, ValueError, Fault, zstandard.ZstdError):  # not kept, or damaged
        return {"missing": "The evaluations' chains (eval/*.samples.jsonl.zst) are not in this directory."}
    model = config.model
    saved = next(run.checkpoints.glob("step-*/tokenizer.json"), None)  # as good as the model's; no hub is asked
    try:
        path = saved.parent if saved else model.path
        template = Template.load(path, think=model.think, system_prompt=model.system_prompt)
    except BadInput as error:
        return {"missing": f"Chains are kept as ids, and the model's tokenizer is not here: {error}"}
    pairs = pair_chains(before, after)
    picked = pick_examples(pairs)
    shown = [(name, problem, [read_side(chain, template) for chain in sides]) for name, problem, *sides in picked]
    return {"counts": {outcome: len(found) for outcome, found in pairs.items()}, "shown": shown}


def pair_chains(before: Sequence[Group], after: Sequence[Group]) -> dict[str, list[Pair]]:
    """Problems by what became of them: the first judged chain of each model on every problem that both have."""
    later = {group.problem.id: group.judged for group in after}
    pairs: dict[str, list[Pair]] = {outcome: [] for outcome in PICKS}
    for problem, judged in ((group.problem, group.judged) for group in before):
        for (first, was), (last, now) in zip(judged[:1], later.get(problem.id, [])[:1], strict=False):
            pairs[OUTCOMES[was.correct, now.correct]].append((problem, first, last))
    return pairs


def pick_examples(pairs: dict[str, list[Pair]]) -> list[tuple[str, Problem, Chain, Chain]]:
    """A few of each outcome, spread evenly over difficulty and length; the same run gives the same ones."""
    picked = []
    for outcome, most in PICKS.items():
        ordered = sorted(pairs[outcome], key=lambda p: (p[0].difficulty, p[2].sampled_count, p[0].id))
        count = min(most, len(ordered))
        picked += [(outcome, *ordered[(2 * i + 1) * len(ordered) // (2 * count)]) for i in range(count)]
    return picked


def read_side(chain: Chain, template: Template) -> dict[str, Any]:
    """A scored chain as text, hostile: {chain, thinking, answer: as the verifier reads it, None = never closed}."""
    text = template.response_text(chain)
    answer = after_thinking(text) if template.think else text  # of a model that doesn't think, all
    thinking = text.removesuffix(answer or "").removesuffix(CLOSE).replace(OPEN, "")
    return {"chain": chain, "thinking": thinking.strip(), "answer": None if answer is None else answer.strip()}
