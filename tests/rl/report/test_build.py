"""The page of any run directory: finished, unfinished, slim, replayed, hostile, of another version."""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import escape

from rewards.errors import BadInput
from rl.config import read_yaml
from rl.report.build import PAGES, build_report, printable, read_record, render
from rl.rundir import RunDir
from tests.rl.report.conftest import HOSTILE
from tests.rl.report.runs import make_slim, write_letters_run, write_text

points = PAGES.get_template("numbers.j2").module.points  # type: ignore[attr-defined]
SECTIONS = ["figures", "training", "thinking", "difficulty", "changed", "steps", "chains", "evaluations", "setup"]


def page(run: RunDir) -> str:
    return render(read_record(run.path))


def copy(run: RunDir, folder: Path) -> RunDir:
    return RunDir(Path(shutil.copytree(run.path, folder / run.path.name)))


def section(text: str, name: str) -> str:
    found = re.search(rf'<section id="{name}">(.*?)</section>', text, re.DOTALL)
    assert found, name
    return found[1]


def test_the_report_is_one_small_file_beside_the_run(finished: RunDir, finished_page: str, tmp_path: Path) -> None:
    run = copy(finished, tmp_path)
    path = build_report(run.path)
    assert path == run.path / "report.html"
    assert path.read_text() == finished_page
    assert path.stat().st_size < 2_000_000
    assert not list(run.path.glob(".*draft"))


def test_the_report_may_be_written_elsewhere(hostile: RunDir, tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    assert build_report(hostile.path, path) == path
    assert path.read_text() == page(hostile)
    assert not (hostile.path / "report.html").exists()


def test_the_page_asks_for_nothing_and_runs_nothing(finished_page: str) -> None:
    text = finished_page
    assert not re.findall(r'(?:src|href|action)="(?!#)[^"]*"|@import|url\((?!#)|<script|<link|\bon\w+="', text)
    assert "default-src 'none'" in text


def test_every_section_of_a_finished_run_is_filled(finished_page: str) -> None:
    text = finished_page
    assert re.findall(r'<section id="(\w+)">', text) == SECTIONS
    assert 'class="missing"' not in text
    assert {name for name in SECTIONS if "<svg" in section(text, name)} == {
        "training", "thinking", "difficulty", "changed", "steps",
    }  # fmt: skip


def test_the_headline_is_the_summarys(finished: RunDir, finished_page: str) -> None:
    summary, text = json.loads(finished.summary.read_text()), section(finished_page, "figures")
    for side in ("base", "final"):
        assert f"<dd>{summary[side]['pass@1']:.3f}</dd>" in text
        assert "{:.3f} to {:.3f}".format(*summary[side]["ci95"]) in text
    assert f"<dd>{points(summary['gain']['pass@1'])}</dd>" in text
    assert f"{points(summary['gain']['ci95'][0])} to {points(summary['gain']['ci95'][1])}, paired" in text


def test_both_verdicts_are_said(finished: RunDir, finished_page: str) -> None:
    verdict = json.loads(finished.summary.read_text())["verdict"]
    assert f"Training axis: <b>{verdict['train_axis']}</b>" in finished_page
    assert f"Thinking axis: <b>{verdict['thinking_axis']}</b>" in finished_page


def test_the_set_up_can_be_repeated_from_the_page(finished: RunDir, finished_page: str) -> None:
    summary, text = json.loads(finished.summary.read_text()), section(finished_page, "setup")
    assert all(version in text for version in summary["versions"].values())
    assert f"<code>{escape(summary['commands'][0])}</code>" in text
    assert finished.config.read_text().splitlines()[0] in text


def test_a_slim_run_says_that_its_chains_are_gone(finished: RunDir, tmp_path: Path) -> None:
    text = page(make_slim(copy(finished, tmp_path)))
    assert "are not in this directory" in section(text, "chains")
    assert text.count('class="missing"') == 1


def test_chains_need_a_tokenizer_of_the_model_or_of_a_checkpoint(unfinished: RunDir) -> None:
    model = Path(read_yaml(unfinished.config)["model"]["path"])
    unfinished.config.write_text(unfinished.config.read_text().replace(str(model), "a/model/gone"))
    assert "a/model/gone: no such model directory" in section(page(unfinished), "chains")
    shutil.copytree(model, unfinished.checkpoints / "step-1", ignore=shutil.ignore_patterns("*.safetensors"))
    assert "<article" in section(page(unfinished), "chains")


def test_an_unfinished_run_compares_its_first_and_last_evaluation(unfinished: RunDir) -> None:
    text = page(unfinished)
    assert "Unfinished: 1 of 2 steps of GRPO" in text
    assert "pass@1, step 0" in section(text, "figures")
    assert "gain, points" not in text
    assert "<svg" in section(text, "difficulty")
    assert "<article" in section(text, "chains")


def test_a_run_that_has_just_begun_says_what_is_missing(unfinished: RunDir) -> None:
    shutil.rmtree(unfinished.eval)
    unfinished.metrics.unlink()
    text = page(unfinished)
    assert text.count('class="missing"') == len(SECTIONS) - 1  # all but the set-up
    assert "<svg" not in text


def test_a_replay_without_evaluations_still_shows_its_steps(unfinished: RunDir) -> None:
    shutil.rmtree(unfinished.eval)
    text = page(unfinished)
    assert "<svg" in section(text, "steps")
    assert 'class="missing"' in section(text, "evaluations")


def test_a_run_with_its_base_alone_shows_that(unfinished: RunDir) -> None:
    for path in unfinished.eval.iterdir():
        if not path.name.startswith("base."):
            path.unlink()
    text = page(unfinished)
    assert "pass@1, base" in section(text, "figures")
    assert 'class="missing"' in section(text, "difficulty")


def test_a_configuration_of_another_version_is_shown_as_it_is(unfinished: RunDir) -> None:
    with unfinished.config.open("a") as file:
        file.write("no_such_key: 1\n")
    text = page(unfinished)
    assert "another version" in text
    assert "no_such_key: 1" in section(text, "setup")
    assert "<svg" in section(text, "steps")


def test_hostile_text_is_shown_and_stays_text(hostile: RunDir) -> None:
    text = section(page(hostile), "chains")
    assert "<script" not in text
    assert "<img" not in text
    assert text.count("&lt;script&gt;") == 5  # the prompt, and chain and verdict of both models
    assert HOSTILE[-6:-5] not in text


@pytest.mark.parametrize(
    ("label", "content", "words"),
    [
        ("final", "{", "final.json"),
        ("final", '{"cells": [{"task": "t"}]}', "final.json"),
        ("changes", "[1]", "changes.json must hold a JSON object"),
    ],
)
def test_a_broken_file_is_named(unfinished: RunDir, label: str, content: str, words: str) -> None:
    write_text(unfinished, label, content)
    with pytest.raises(BadInput, match=words):
        page(unfinished)


def test_a_broken_line_of_metrics_is_named(unfinished: RunDir) -> None:
    unfinished.metrics.write_text("{\n")
    with pytest.raises(BadInput, match=r"metrics\.jsonl is broken"):
        page(unfinished)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not a run directory"):
        build_report(tmp_path)


def test_a_place_that_can_not_be_written_is_refused(hostile: RunDir, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="choose another --out"):
        build_report(hostile.path, tmp_path)


def test_traits_stand_side_by_side_by_difficulty(unfinished: RunDir) -> None:
    side = {"direct": 0.2, "by_difficulty": {"3": {"direct": 0.1}, "4": {"direct": 0.3}}}
    changes = {"base": side, "final": {"direct": 0.0, "by_difficulty": {"3": {"direct": 0.05}}}}
    write_text(unfinished, "changes", json.dumps(changes))
    text = section(page(unfinished), "changed")
    assert re.findall(r'colspan="2">([^<]+)<', text) == ["all", "difficulty 3", "difficulty 4"]
    assert re.findall(r'<td class="n">([^<]+)<', text) == ["0.2", "0", "0.1", "0.05", "0.3", "\u2013"]


def test_characters_that_would_act_are_written_out() -> None:
    assert printable("a\x07b\u202ec\ud800\n\td") == "a\\u0007b\\u202ec\\ud800\n\td"


@given(st.text())
def test_a_printable_text_can_be_written_and_turns_nothing_around(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert {unicodedata.category(c) for c in shown if c not in "\n\t"}.isdisjoint({"Cc", "Cf", "Cs"})
    assert printable(shown) == shown


def test_nothing_from_outside_acts_on_the_page(unfinished: RunDir) -> None:
    """Not the text of chains alone: whatever the template prints."""
    with unfinished.config.open("a") as file:
        file.write("# \u202e<script>\n")
    write_text(unfinished, "changes", json.dumps({"controls": [{"name": HOSTILE, "pass@1": 0, "ci95": [0, 1]}]}))
    text = page(unfinished)
    assert "<script" not in text
    assert text.count("\\u202e") >= 2
    assert "\u202e" not in text


def test_the_middle_of_long_text_is_left_out(hostile: RunDir, tmp_path: Path) -> None:
    text = section(page(write_letters_run(tmp_path, "a" * 6000 + "b" * 6000)), "chains")
    assert text.count(f"{'a' * 3000}\n\n… 6,000 characters left out …\n\n{'b' * 3000}<") == 2
    assert "characters left out" not in page(hostile)
