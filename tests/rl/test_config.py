"""Configuration: what is refused, in one line, and what overrides and presets do."""

from __future__ import annotations

import pytest

from rewards.errors import BadInput
from rl.config import Config, dump_config, load_config, override_config, parse_config, walk_fields
from rl.views import configuration_markdown

BASE = {"model": {"path": "m"}, "task": "letters"}


def parse(**extra: object) -> Config:
    return parse_config(BASE | extra)


@pytest.mark.parametrize(
    ("extra", "parts"),
    [
        ({"rolout": {}}, ["rolout", "rollout"]),
        ({"rollout": {"group_sizee": 4}}, ["rollout.group_sizee", "did you mean 'rollout.group_size'"]),
        ({"train": {"group_size": 4}}, ["did you mean 'rollout.group_size'"]),
        ({"rollout": {"group_size": "four"}}, ["rollout.group_size='four'", "integer"]),
        ({"rollout": {"top_p": 0.9}}, ["rollout.top_p=0.9", "1.0"]),
        ({"rollout": {"temperature": 0.0}}, ["rollout.temperature"]),
        ({"seed": True}, ["seed"]),
        ({"run": {"name": "../up"}}, ["run.name"]),
        ({"train": {"minibatches": 40}}, ["train.minibatches=40", "rollout.problems=32"]),
        ({"sync": {"backend": "rdma"}}, ["sync.backend='rdma'", "'nccl'"]),
        ({"sync": {"backend": "nccl"}, "rollout": {"colocate": True}}, ["sync.backend=nccl", "no rollout.colocate"]),
        ({"sync": {"backend": "nccl"}, "sampler": "transformers"}, ["sync.backend=nccl", "sampler=vllm"]),
        (
            {"sync": {"backend": "nccl"}, "rollout": {"servers": ["http://10.0.0.2:80", "http://localhost:80"]}},
            ["rollout.servers=['http://10.0.0.2:80']", "sync.address=127.0.0.1"],
        ),
        ({"budget": {"think": 8, "answer": 512}}, ["budget.answer=512", "rollout.max_tokens=512"]),
    ],
)
def test_wrong_values_are_refused_in_one_line(extra: dict, parts: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        parse(**extra)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_missing_model_is_named() -> None:
    with pytest.raises(BadInput, match="model is required"):
        parse_config({"task": "letters"})


@pytest.mark.parametrize("content", ["a: [1,\n", "[]\n", "just words\n", "\x00\xff"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, content: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(BadInput) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_random_bytes_and_missing_files_are_refused(tmp_path) -> None:
    (tmp_path / "r.yaml").write_bytes(bytes(range(128, 256)))
    for name in ("r.yaml", "none.yaml"):
        with pytest.raises(BadInput):
            load_config(tmp_path / name)


def write_base(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("model: {path: m}\ntask: letters\ntrain: {learning_rate: 1e-3}\n")
    return path


def test_overrides_win_and_numbers_without_a_dot_are_numbers(tmp_path) -> None:
    config = load_config(write_base(tmp_path), ["train.steps=3", "run.name=a+b", "budget.think=null"])
    assert config.train.learning_rate == 1e-3
    assert (config.train.steps, config.run.name, config.budget.think) == (3, "a+b", None)
    assert load_config(write_base(tmp_path), ["train.learning_rate=2e-4"]).train.learning_rate == 2e-4


@pytest.mark.parametrize("item", ["no-equals", "=3", "task.x=1", "train.steps=[1,"])
def test_malformed_overrides_are_refused(tmp_path, item: str) -> None:
    with pytest.raises(BadInput):
        load_config(write_base(tmp_path), [item])


def test_dump_round_trips(tmp_path) -> None:
    config = parse(seed=7, rollout={"group_size": 4})
    path = tmp_path / "dump.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config
    assert override_config(config, ["seed=8"]).seed == 8


def test_config_is_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        parse().seed = 3  # type: ignore[misc]


def test_bound_follows_the_dtype_unless_given() -> None:
    assert parse().mismatch_bound == 1e-6
    assert parse(model={"path": "m", "dtype": "bfloat16"}).mismatch_bound == 1e-3
    assert parse(sync={"bound": 0.5}).mismatch_bound == 0.5


def test_every_field_is_documented_and_no_section_is_large() -> None:
    text = configuration_markdown()
    for key, info in walk_fields(Config):
        assert info.description, f"{key} has no description"
        assert f"`{key}`" in text
    counts: dict[str, int] = {}
    for key, _ in walk_fields(Config):
        counts[key.rpartition(".")[0]] = counts.get(key.rpartition(".")[0], 0) + 1
    assert max(counts.values()) <= 15
