"""Chains of the base and the trained model on the same problems, side by side."""

from collections.abc import Sequence
from typing import Any

import zstandard

from rewards.answer import CLOSE, OPEN, after_thinking
from rewards.errors import BadInput, Fault
from rewards.types import Problem
from rl.evaluator import read_groups
from rl.report.record import Record
from rollout.prompt import Template
from rollout.types import Chain, Group

PICKS = {"gained": 3, "both right": 1, "both wrong": 2, "lost": 1}  # what became of a problem -> how many are shown
OUTCOMES = {(False, True): "gained", (True, True): "both right", (False, False): "both wrong", (True, False): "lost"}

Pair = tuple[Problem, Chain, Chain]  # a problem with a scored chain of each model


def find_examples(record: Record) -> dict[str, Any]:
    """{counts: by outcome, shown: (outcome, problem, sides)}; {missing: why} where there are none."""
    if record.comparison is None:
        return {"missing": "Two evaluations of the same problems are needed; this run has not made them yet."}
    if record.config is None:
        return {"missing": f"The tokenizer is not known: {record.config_problem}"}
    try:
        before, after = (read_groups(record.run, label) for label in record.comparison["labels"])
    except (OSError, ValueError, Fault, zstandard.ZstdError):  # not kept, or damaged
        return {"missing": "The evaluations' chains (eval/*.samples.jsonl.zst) are not in this directory."}
    model = record.config.model
    saved = next(record.run.checkpoints.glob("step-*/tokenizer.json"), None)  # as good as the model's; no hub is asked
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

    def judged(group: Group) -> Chain | None:
        return next((chain for chain in group.chains if chain.score is not None and chain.score.counts), None)

    later = {group.problem.id: judged(group) for group in after}
    pairs: dict[str, list[Pair]] = {outcome: [] for outcome in PICKS}
    for group in before:
        first, last = judged(group), later.get(group.problem.id)
        if first and last and first.score and last.score:
            pairs[OUTCOMES[first.score.correct, last.score.correct]].append((group.problem, first, last))
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
    """A scored chain as text: {chain, thinking, answer: as the verifier reads it, None = never closed}.

    One of a model that doesn't think is all answer. What models write is hostile: the page escapes it.
    """
    text = template.response_text(chain)
    answer = after_thinking(text) if template.think else text
    thinking = text.removesuffix(answer or "").removesuffix(CLOSE).replace(OPEN, "")
    return {"chain": chain, "thinking": thinking.strip(), "answer": None if answer is None else answer.strip()}
