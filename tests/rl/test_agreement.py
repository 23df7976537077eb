"""Patterns of disagreement and their causes; the end of a turn that a chat template writes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from rl.selftest import diagnose, expected_stop_ids
from tests.fakes import word_tokenizer

CHAT = "{% for m in messages %}{{ m.role }} : {{ m.content }} <end> {% endfor %}"


@pytest.mark.parametrize(
    ("template", "written"),
    [
        (CHAT, "<end>"),
        (CHAT.replace("<end>", "!"), None),  # a word like any other, not an end that the model was taught
        ("{{ messages[0].content }}", None),
        ("{{ raise_exception('no assistant here') }}", None),
        (None, None),
    ],
)
def test_the_end_that_a_chat_template_writes_is_found(
    tmp_path: Path, template: str | None, written: str | None
) -> None:
    words = ["<pad>", "<bos>", "<eos>", "user", "assistant", "forty-two", "?", ":", "!", "<end>"]
    tokenizer = word_tokenizer(words, additional_special_tokens=["<end>"])
    tokenizer.chat_template = template
    expected = {} if written is None else {words.index(written): "the chat template"}
    assert expected_stop_ids(tokenizer, tmp_path) == {words.index("<eos>"): "the tokenizer"} | expected


def test_patterns_and_their_causes() -> None:
    good, bad = 1e-7, 0.1

    def cause(short: Sequence[float], long: Sequence[float], repeated: Sequence[float]) -> str | None:
        kinds = {"short": short, "long": long, "repeated": repeated}
        return diagnose({kind: list(gaps) for kind, gaps in kinds.items()}, 1e-5)

    fine = (good, good)
    assert cause(fine, fine, fine) is None
    assert cause((1e-5, 1e-5), fine, fine) is None  # the bound itself holds
    assert cause((bad, good), (bad, good), (bad, good)) == "temperature"
    assert cause((bad, bad), (bad, bad), (bad, bad)) == "everything"
    assert cause((good, bad), fine, fine) == "everything"
    assert cause(fine, (bad, good), (bad, bad)) == "long"
    assert cause(fine, fine, (good, bad)) == "cache"
    assert cause(fine, (good, math.nan), fine) == "broken"
