"""What comes next: in order, without the retired; dynamic sampling and retirement in the loop, exact after a resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rewards.errors import Fault
from rewards.tasks import load_task
from rl.curriculum import Curriculum
from rl.metrics import alike, read_metrics, variance_metrics
from rollout.store import read
from tests.rl.chains import make_chain, make_group
from tests.rl.test_loop import figures, make_config, run_once, weights

TASK = load_task("countdown?numbers=3", seed=0)


def test_draws_in_order_and_skips_the_retired() -> None:
    first, after = Curriculum().draw(TASK, 4)
    assert [p.key for p in first] == [TASK.problem(i, "train").key for i in range(4)]
    again, _ = Curriculum(retired=(first[1].key,)).draw(TASK, 3)
    assert [p.key for p in again] == [first[0].key, first[2].key, first[3].key]
    assert after.draw(TASK, 1)[0][0].key == TASK.problem(4, "train").key


def test_all_retired_is_a_fault_and_no_endless_loop(tmp_path: Path) -> None:
    file = tmp_path / "few.jsonl"
    file.write_text('{"prompt": "a", "answer": "1", "split": "train"}\n')
    task = load_task(str(file), seed=0)
    with pytest.raises(Fault, match="solves all problems"):
        Curriculum(retired=(task.problem(0, "train").key,)).draw(task, 1)


def test_retires_at_the_pass_rate_and_counts_only_what_was_judged() -> None:
    solved = make_group([make_chain([1, 2], 1, value=1.0), make_chain([1, 2], 1, value=None)], "solved")
    half = make_group([make_chain([1, 2], 1, value=1.0), make_chain([1, 2], 1)], "half")
    unknown = make_group([make_chain([1, 2], 1, value=None)], "unknown")
    solved, half, unknown = (replace(g, problem=replace(g.problem, key=g.problem.id)) for g in (solved, half, unknown))
    found = Curriculum(7).retire([solved, half, unknown], 0.9)
    assert (found.retired, found.position) == (("solved",), 7)
    assert found.retire([half], 0.5).retired == ("solved", "half")
    assert Curriculum().retire([solved], None).retired == ()
    assert Curriculum.parse(found.dump()) == found


def test_groups_that_are_alike_are_counted_by_difficulty() -> None:
    flat, mixed = (
        make_group([make_chain([1, 2], 1, value=v), make_chain([1, 2, 3], 1, value=1.0)]) for v in (1.0, 0.0)
    )
    flat = replace(flat, problem=replace(flat.problem, difficulty=3.0))
    assert (alike(flat), alike(mixed), alike(make_group([]))) == (True, False, False)
    row = variance_metrics([flat, mixed, mixed])
    assert row["groups/alike/difficulty_3"] == 1
    assert (row["groups/alike"], row["groups/all"]) == (1, 3)
    assert (row["groups/alike/pass@1"], row["groups/mixed/pass@1"]) == (1.0, 0.5)
    assert (row["groups/mixed/difficulty"], row["groups/mixed/tokens"]) == (0.0, 1.5)


DYNAMIC = {"algorithm": "dapo", "objective": {"retire_above": 0.7}}


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory):
    return run_once(make_config(tmp_path_factory.mktemp("runs"), "dynamic", **DYNAMIC))


def test_groups_without_variance_are_replaced_a_bounded_number_of_times(dynamic) -> None:
    rows = read_metrics(dynamic.metrics)
    assert any(row["groups/all"] > 4 for row in rows)
    for (_, groups), row in zip(read(dynamic.samples), rows, strict=True):
        assert len(groups) == row["groups/all"] <= 4 * (1 + 3)
        kept = row["groups/all"] - row["groups/alike"]
        assert kept <= 4
        assert row["tokens/trained"] == sum(c.sampled_count for g in groups if not alike(g) for c in g.chains)
    keys = [g.problem.id for _, groups in read(dynamic.samples) for g in groups]
    assert len(set(keys)) == len(keys)


def test_a_resumed_run_asks_the_same_problems(dynamic, tmp_path: Path) -> None:
    half = make_config(tmp_path, "half", **DYNAMIC)
    run = run_once(half.model_copy(update={"train": half.train.model_copy(update={"steps": 2})}))
    run_once(make_config(tmp_path, "half", **DYNAMIC), resume=True)
    assert figures(run) == figures(dynamic)
    assert weights(run, 4) == weights(dynamic, 4)
