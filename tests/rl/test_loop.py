"""The loop with the transformers sampler: exact resume, exact replay, what stops a run and what is saved then."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest

from rewards.errors import BadInput, Fault
from rl.checkpoint import latest_checkpoint
from rl.config import Config, override_config, parse_config
from rl.launch import launch
from rl.metrics import read_metrics
from rl.rundir import RunDir, open_run

MODEL = str(Path(__file__).parents[2] / "configs/models/bytes-tiny")


def make_config(tmp_path: Path, name: str, **extra: Any) -> Config:
    data: dict[str, Any] = {
        "run": {"name": name, "dir": str(tmp_path)},
        "model": {"path": MODEL, "think": False},
        "task": "letters",
        "sampler": "transformers",
        "rollout": {"problems": 4, "group_size": 4, "max_tokens": 3},
        "train": {"steps": 4, "learning_rate": 0.003, "minibatches": 2, "checkpoint_every": 2, "threads": 1},
        "rewards": {"workers": 1},
    }
    for section, values in extra.items():
        data[section] = data[section] | values if isinstance(data.get(section), dict) else values
    return parse_config(data)


def run_once(config: Config, **how: Any) -> RunDir:
    run = RunDir(config.run_dir)
    launch(config, run, **how)
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> RunDir:
    """Four steps in one go."""
    return run_once(make_config(tmp_path_factory.mktemp("runs"), "whole"))


def weights(run: RunDir, step: int) -> bytes:
    return (run.checkpoints / f"step-{step}" / "model.safetensors").read_bytes()


def figures(run: RunDir) -> list[dict[str, Any]]:
    """Metrics without what depends on the clock and the process."""
    own = ("time/", "total/time", "memory/", "mfu")
    return [{k: v for k, v in row.items() if not k.startswith(own)} for row in read_metrics(run.metrics)]


def test_a_run_leaves_each_step_once_with_agreement_and_checkpoints(whole: RunDir) -> None:
    rows = read_metrics(whole.metrics)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["mismatch_kl/fresh"] < 1e-9 for row in rows)
    assert rows[-1]["total/tokens/generated"] == sum(row["tokens/generated"] for row in rows)
    assert sorted(p.name for p in whole.checkpoints.iterdir()) == ["step-2", "step-4"]
    summary = json.loads(whole.summary.read_text())
    assert (summary["steps"], summary["sampler"], summary["world_size"]) == (4, "transformers", 1)
    assert weights(whole, 2) != weights(whole, 4)


def test_two_steps_resume_two_steps_equal_four(tmp_path, whole: RunDir) -> None:
    config = make_config(tmp_path, "parts", train={"steps": 2})
    run = run_once(config)
    first_lines = run.metrics.read_bytes()
    run_once(override_config(config, ["train.steps=4"]), resume=True)
    assert run.metrics.read_bytes().startswith(first_lines)
    assert figures(run) == figures(whole)
    assert weights(run, 4) == weights(whole, 4)
    assert optimizer(run, 4) == optimizer(whole, 4)


def optimizer(run: RunDir, step: int) -> bytes:
    return (run.checkpoints / f"step-{step}" / "trainer/state.safetensors").read_bytes()


def test_a_crash_after_the_checkpoint_is_cut_back_to_it(tmp_path, whole: RunDir) -> None:
    run = run_once(make_config(tmp_path, "crash", train={"steps": 3}))  # saves at 2 and at its last step, 3
    with run.metrics.open("a") as file:
        file.write('{"step": 4, "rew')
    damaged = run.checkpoints / "step-3" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    config = override_config(open_run(run.path)[1], ["train.steps=4"])
    run_once(config, resume=True)
    assert figures(run) == figures(whole)
    assert weights(run, 4) == weights(whole, 4)


def test_nothing_left_to_do_is_said(tmp_path, whole: RunDir, capsys) -> None:
    before = whole.metrics.read_bytes()
    run_once(open_run(whole.path)[1], resume=True)
    assert "nothing left to do" in capsys.readouterr().out
    assert whole.metrics.read_bytes() == before


def test_replay_trains_the_same_weights_without_sampling(tmp_path, whole: RunDir) -> None:
    config = make_config(tmp_path, "replay", sampler="vllm")  # never started
    run = run_once(config, replay=whole.path)
    assert weights(run, 4) == weights(whole, 4)
    with pytest.raises(BadInput, match="step 5"):
        run_once(make_config(tmp_path, "longer", train={"steps": 5}), replay=whole.path)


def test_saved_directories_load_in_plain_transformers(whole: RunDir) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = whole.checkpoints / "step-4"
    model = AutoModelForCausalLM.from_pretrained(path)
    ids = AutoTokenizer.from_pretrained(path)("abc", return_tensors="pt").input_ids
    assert model(ids).logits.shape[:2] == ids.shape


def test_a_failing_reward_stops_the_run_by_name_and_saves(tmp_path) -> None:
    (tmp_path / "bad.py").write_text(
        "def f(response, problem):\n    raise KeyError('gone')\n\n\nf.scores_truncated = True\n"
    )
    config = make_config(tmp_path, "bad", reward=f"{tmp_path}/bad.py:f")
    with pytest.raises(Fault, match=r"16 of 16 chains.*KeyError"):
        run_once(config)
    found = latest_checkpoint(RunDir(config.run_dir).checkpoints, print)
    assert found is not None
    assert found.step == 0


def test_a_changed_task_is_not_resumed(tmp_path) -> None:
    config = make_config(tmp_path, "task", train={"steps": 1})
    run_once(config)
    other = override_config(config, ["train.steps=2", "seed=5"])
    before = RunDir(config.run_dir).config.read_bytes()
    with pytest.raises(BadInput, match="other problems"):
        run_once(other, resume=True)
    assert RunDir(config.run_dir).config.read_bytes() == before


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"rollout": {"max_tokens": 5000}}, "context"),
        ({"model": {"path": "no/such/model"}}, "no/such/model"),
        ({"reward": "no.such:thing"}, "no.such"),
        ({"task": "countdown?nmbers=3"}, "nmbers"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(tmp_path, extra: dict[str, Any], words: str) -> None:
    config = make_config(tmp_path, "refused", **extra)
    with pytest.raises(BadInput, match=words):
        run_once(config)
    assert not config.run_dir.exists()


def test_a_refused_overwrite_loses_nothing(tmp_path) -> None:
    config = make_config(tmp_path, "kept", train={"steps": 1})
    run = run_once(config)
    before = run.metrics.read_bytes()
    with pytest.raises(BadInput, match="--resume"):
        run_once(config)
    with pytest.raises(BadInput, match=r"no\.such"):
        run_once(override_config(config, ["reward=no.such:thing"]), overwrite=True)
    assert run.metrics.read_bytes() == before
    run_once(config, overwrite=True)
    assert [row["step"] for row in read_metrics(run.metrics)] == [1]


def test_evaluation_gives_base_final_and_a_paired_gain(tmp_path) -> None:
    asked = {"every": 1, "problems": 6, "test_problems": 9, "budgets_every": 1}
    run = run_once(make_config(tmp_path, "eval", eval=asked, train={"steps": 2}))
    summary = json.loads(run.summary.read_text())
    for name in ("base", "final", "gain"):
        low, high = summary[name]["ci95"]
        assert low <= summary[name]["pass@1"] <= high
    labels = {f"{name}.json" for name in ("base", "step-0", "step-1", "budgets-step-1", "step-2", "final", "changes")}
    assert {p.name for p in run.eval.glob("*.json")} == labels
    for label, split, count in [("base", "test", 9), ("step-0", "val", 6), ("step-2", "val", 6)]:
        cell = json.loads((run.eval / f"{label}.json").read_text())["cells"][0]
        assert (cell["split"], cell["n_problems"], cell["task"]) == (split, count, "letters")
    assert summary["verdict"].keys() == {"train_axis", "thinking_axis"}
    assert (run.path / "report.html").stat().st_size > 10_000


def test_a_thinking_run_is_measured_at_budgets_beside_direct_answers_and_controls(tmp_path) -> None:
    model = str(Path(MODEL).with_name("countdown-tiny"))
    config = make_config(
        tmp_path, "thinks", model={"path": model, "think": True}, task="countdown?numbers=3", budget={"answer": 16},
        rollout={"problems": 2, "max_tokens": 48}, train={"steps": 1},
        eval={"every": 1, "problems": 4, "budgets": [0, 16], "controls": True},
    )  # fmt: skip
    run = run_once(config)
    cells = json.loads((run.eval / "final.json").read_text())["cells"]
    assert [(c["prompt"], c["budget"]) for c in cells] == [("cot", 0), ("cot", 16), ("cot", None), ("direct", None)]
    summary = json.loads(run.summary.read_text())
    assert [c["budget"] for c in summary["budgets"]["final"]] == [0, 16]
    assert summary["final"]["pass@1"] == cells[2]["pass@1"]
    changes = json.loads((run.eval / "changes.json").read_text())
    assert len(changes["controls"]) == 3
    assert {"direct", "attempts", "tokens"} <= changes["base"].keys()
    assert {"chain/direct", "chain/attempts"} <= read_metrics(run.metrics)[0].keys()


def test_mismatch_past_ten_bounds_stops_before_the_update(tmp_path, monkeypatch) -> None:
    """A sampler whose weights are not the learner's: found in the first step, nothing trained."""
    from rl.backend import LocalBackend

    async def forget(self: LocalBackend, source: object, version: int) -> None:
        for parameter in self.sampler._model.parameters():
            parameter.data.mul_(1.05)
        self.sampler.version = version

    monkeypatch.setattr(LocalBackend, "push", forget)
    config = make_config(tmp_path, "mismatch")
    with pytest.raises(Fault, match=r"mismatch_kl/fresh is .*not pushed"):
        run_once(config)
    run = RunDir(config.run_dir)
    assert read_metrics(run.metrics) == []
    from rl.build import build_learner

    fresh = dict(build_learner(config).policy.named_parameters())
    from safetensors.torch import load_file

    saved = load_file(run.checkpoints / "step-0" / "model.safetensors")
    assert all(tensor.equal(fresh[name].data) for name, tensor in saved.items())


def test_a_sampler_without_logprobs_is_stopped_before_the_update(tmp_path, monkeypatch) -> None:
    """What can't be compared can't be trusted: null logprobs must not pass as agreement."""
    from dataclasses import replace

    from rollout.transformers_sampler import TransformersSampler

    sample = TransformersSampler.sample

    async def mute(self: TransformersSampler, *args: Any) -> Any:
        done = await sample(self, *args)
        return replace(done, logprobs=[math.nan, *done.logprobs[1:]])

    monkeypatch.setattr(TransformersSampler, "sample", mute)
    with pytest.raises(Fault, match=r"no log-probability for .* of the fresh tokens"):
        run_once(make_config(tmp_path, "mute"))
    assert read_metrics(RunDir(tmp_path / "mute").metrics) == []


def test_a_stop_signal_saves_the_last_whole_step(tmp_path, monkeypatch) -> None:
    import os
    import signal

    from rl import loop
    from rl.exits import Stopped

    original = loop.collect

    async def collect(problems: Any, examiner: Any, **kwargs: Any) -> Any:
        if examiner.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(30)
        return await original(problems, examiner, **kwargs)

    monkeypatch.setattr(loop, "collect", collect)
    config = make_config(tmp_path, "stopped", train={"checkpoint_every": 100})
    with pytest.raises(Stopped) as caught:
        run_once(config)
    assert caught.value.signum == signal.SIGTERM
    found = latest_checkpoint(RunDir(config.run_dir).checkpoints, print)
    assert found is not None
    assert found.step == 1
