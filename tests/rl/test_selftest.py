"""The selftest passes where server and learner agree, and names what is wrong where a fault is planted.

Each reason has a test with the transformers sampler here; test_selftest_served.py has the same with real servers.
"""

from __future__ import annotations

import copy
import json
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from torch import Tensor

import rl.selftest
from rl.backend import LocalBackend
from rl.build import Setup, build_learner, prepare
from rl.cli import app
from rl.config import Config, dump_config, override_config, parse_config
from rl.exits import run_command
from rl.learner import Learner
from rl.selftest import Selftest, widen
from rl.sync import Manifest, WeightSource
from rollout.client import ServerDown
from rollout.sampling import SamplingParams
from rollout.types import Completion
from tests.models import tiny_model

KEYS = {"ratio_max", "parity_before", "parity_after", "unpushed_seen", "stop_ids", "ok"}
FRESH = 1e-3  # an error planted in log-probabilities, nats: a hundred times the bound
FAULTS = Path(__file__).parents[1] / "faults"


def make_config(model: Path, **train: Any) -> Config:
    """The smallest run: 2 problems."""
    return parse_config(
        {
            "model": {"path": str(model), "think": False},
            "task": "letters",
            "sampler": "transformers",
            "rollout": {"problems": 2, "group_size": 2, "max_tokens": 4},
            "train": {"steps": 2, "learning_rate": 0.0, "minibatches": 2, "threads": 1} | train,
        }
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untied, so that the head is a tensor of its own; one layer is enough here."""
    return tiny_model(tmp_path_factory.mktemp("models") / "untied", tied=False, num_hidden_layers=1)


@pytest.fixture(scope="module")
def setup(model: Path) -> Setup:
    return widen(prepare(make_config(model)))


@pytest.fixture(scope="module")
def learner(setup: Setup) -> Learner:
    return build_learner(setup.config)


@pytest.fixture(autouse=True)
def fewer_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a server a third of the tokens shows the same."""
    monkeypatch.setattr(rl.selftest, "TOKENS", 8)


class Planted:
    """A sampler between the selftest and the real one, with a fault in `sample`."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.seen: dict[tuple[int, ...], int] = {}

    @property
    def version(self) -> int:
        return self.inner.version

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        raise NotImplementedError

    def load(self, tensors: Iterator[tuple[str, Tensor]], version: int) -> None:
        self.inner.load(tensors, version)

    async def aclose(self) -> None:
        await self.inner.aclose()

    async def shifted(self, prompt: Sequence[int], params: SamplingParams, error: float) -> Completion:
        """The right answer but for an error in its log-probabilities."""
        done = await self.inner.sample(prompt, params)
        return replace(done, logprobs=[logprob + error for logprob in done.logprobs])


class IgnoresTemperature(Planted):
    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        return await self.inner.sample(prompt_ids, replace(params, temperature=1.0))


class StaleCache(Planted):
    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        first = self.seen.setdefault(tuple(prompt_ids), self.version)
        stale = len(prompt_ids) >= 128 and first != self.version
        return await self.shifted(prompt_ids, params, FRESH * stale)


class LosesLongPrompts(Planted):
    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        return await self.shifted(prompt_ids, params, FRESH * (len(prompt_ids) >= 128))


class OffInSteps(Planted):
    """Only the steps' chains have stop ids, and they are longer than one token."""

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        return await self.shifted(prompt_ids, params, 10 * FRESH * bool(params.stop_ids))


class Broken(Planted):
    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        return await self.shifted(prompt_ids, params, math.nan)


class OneStopId(Planted):
    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        return await self.inner.sample(prompt_ids, replace(params, stop_ids=params.stop_ids[:1]))


class HidesStopToken(Planted):
    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        done = await self.inner.sample(prompt_ids, params)
        keep = len(done.token_ids) - (done.finish_reason == "stop" and len(done.token_ids) > 1)
        return replace(done, token_ids=done.token_ids[:keep], logprobs=done.logprobs[:keep])


class StopsUnasked(Planted):
    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        done = await self.inner.sample(prompt_ids, params)
        if params.stop_ids:
            return done
        return replace(done, token_ids=done.token_ids[:5], logprobs=done.logprobs[:5], finish_reason="stop")


class Gone(Planted):
    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        raise ServerDown("http://server", "connection refused")


class Forgets:
    """A WeightSource that goes on sending a tensor, or all ("*"), as it was when it was first sent."""

    def __init__(self, source: WeightSource, name: str, first: dict[str, Tensor]) -> None:
        self.source, self.name, self.first = source, name, first

    def manifest(self) -> Manifest:
        return self.source.manifest()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.source.tensors():
            yield name, self.first.setdefault(name, tensor.clone()) if self.name in (name, "*") else tensor


class Backend(LocalBackend):
    """The transformers back end with a sampler's fault, or a push that forgets a tensor."""

    def __init__(self, setup: Setup, fault: type[Planted] | None = None, forgotten: str = "") -> None:
        super().__init__(setup)
        self.forgotten, self.first = forgotten, {}  # type: str, dict[str, Tensor]
        if fault is not None:
            self.sampler = fault(self.sampler)  # type: ignore[assignment]

    async def push(self, source: WeightSource, version: int) -> None:
        await super().push(Forgets(source, self.forgotten, self.first), version)


async def reasons_of(setup: Setup, learner: Learner, backend: LocalBackend, *checks: str) -> list[str]:
    """The reasons that some checks of the selftest give."""
    selftest = Selftest(setup, backend, learner)
    try:
        for check in ("push", *checks):
            await getattr(selftest, check)()
    finally:
        await backend.aclose()
    return selftest.report.reasons


async def test_a_healthy_pair_passes_and_gets_its_weights_back(setup: Setup, learner: Learner) -> None:
    before = {name: p.detach().clone() for name, p in learner.policy.named_parameters()}
    backend = Backend(setup)
    report = await Selftest(setup, backend, learner).run()
    assert report.reasons == []
    assert report.parity_before < 1e-6
    assert report.parity_after < 1e-6
    assert report.mismatch < 1e-12
    assert report.ratio_max == pytest.approx(1, abs=1e-6)
    assert report.unpushed_seen
    assert report.stop_ids
    served = dict(backend.sampler._model.named_parameters())
    await backend.aclose()
    for name, p in learner.policy.named_parameters():
        assert p.equal(before[name]), name
        assert served[name].equal(before[name]), name


@pytest.fixture
def own_precision() -> Iterator[None]:
    """accelerate keeps one precision a process; that of the other tests comes back."""
    state = dict(AcceleratorState._shared_state)
    AcceleratorState._shared_state.clear()
    yield
    AcceleratorState._shared_state.clear()
    AcceleratorState._shared_state.update(state)


@pytest.mark.usefixtures("own_precision")
async def test_a_healthy_pair_passes_in_bfloat16(model: Path) -> None:
    """Its bound is wide: a change must move more than that, and yet not so much that rounding looks like a fault."""
    half = widen(prepare(override_config(make_config(model), ["model.dtype=bfloat16"])))
    backend = Backend(half)
    report = await Selftest(half, backend, build_learner(half.config)).run()
    await backend.aclose()
    assert report.reasons == []
    assert 1e-4 < report.parity_after < 0.01
    assert report.unpushed_seen


@pytest.mark.parametrize(
    ("fault", "forgotten", "words"),
    [
        (
            IgnoresTemperature,
            "",
            r"on the same weights: \S+ off at T = 0.7 and nothing at T = 1.0: .*processed_logprobs",
        ),
        (StaleCache, "", r"after a push: \S+ off on a long prompt that was sent before .*stale prefix cache"),
        (LosesLongPrompts, "", r"on the same weights: 1.0e-03 off on new long prompts .*positions"),
        (Broken, "", r"on the same weights: the sampler's log-probabilities are not all numbers"),
        (None, "*", r"after a push: \S+ off everywhere, and a push leaves .*do not arrive"),
        (None, "lm_head.weight", r"after a push: \S+ off everywhere, .*stale output head"),
        (None, "model.layers.0.mlp.up_proj.weight", r"after a push: .*the output head follows.*does not arrive"),
        (None, "model.norm.weight", r"after a push: .*the output head follows.*does not arrive"),
    ],
)
async def test_a_disagreement_is_named(
    setup: Setup, learner: Learner, fault: type[Planted] | None, forgotten: str, words: str
) -> None:
    (reason,) = await reasons_of(setup, learner, Backend(setup, fault, forgotten), "check_pushes")
    assert re.match(words, reason), reason


async def test_a_sampler_that_shares_the_learner_s_weights_is_named(setup: Setup, learner: Learner) -> None:
    backend = Backend(setup)
    for own, theirs in zip(backend.sampler._model.parameters(), learner.policy.parameters(), strict=True):
        own.data = theirs.data
    (reason,) = await reasons_of(setup, learner, backend, "check_pushes")
    assert "not pushed" in reason
    assert "without a push" in reason


async def test_a_broken_sampler_fails_every_check_and_crashes_none(setup: Setup, learner: Learner) -> None:
    backend = Backend(setup, Broken)
    report = await Selftest(setup, backend, learner).run()
    await backend.aclose()
    assert not report.unpushed_seen
    assert "not all numbers" in report.reasons[0]
    assert any(reason.startswith("mismatch_kl/fresh is nan") for reason in report.reasons)


async def test_a_mismatch_on_the_run_s_own_chains_is_named(setup: Setup, learner: Learner) -> None:
    (reason,) = await reasons_of(setup, learner, Backend(setup, OffInSteps), "check_steps")
    assert reason.startswith("mismatch_kl/fresh is 5.")
    assert "at T = 1.0, bound 1e-06" in reason


async def test_a_learner_that_moves_at_learning_rate_0_is_named(model: Path) -> None:
    moving = widen(prepare(make_config(model, learning_rate=0.01)))
    mismatch, ratio, moved = await reasons_of(moving, build_learner(moving.config), Backend(moving), "check_steps")
    assert mismatch.startswith("mismatch_kl/fresh is ")  # the second step's chains are not of the moved weights
    assert re.match(r"ratio/max is \d\.\d+ at learning rate 0, not 1", ratio)
    assert moved == "weights moved at learning rate 0"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (OneStopId, [r"with stop ids \[258, \d+\] the sampler gave 8 tokens \(length\), where token \d+ should"]),
        (
            HidesStopToken,
            [r"with stop ids \[258, \d+\] the sampler gave", r"with stop ids \[\d+, 258\] the sampler gave"],
        ),
        (StopsUnasked, [r"without stop ids the sampler ended after 5 of 8 tokens"]),
    ],
)
async def test_stop_ids_that_are_not_honoured_are_named(
    setup: Setup, learner: Learner, fault: type[Planted], words: list[str]
) -> None:
    reasons = await reasons_of(setup, learner, Backend(setup, fault), "check_stop_ids")
    assert len(reasons) == len(words)
    assert all(re.match(expected, reason) for expected, reason in zip(words, reasons, strict=True)), reasons


async def test_an_end_of_turn_that_the_template_lacks_is_named(model: Path, learner: Learner, tmp_path: Path) -> None:
    """As where a chat model's files name another end than its tokenizer."""
    path = tmp_path / "model"
    shutil.copytree(model, path)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [258, 10]}))
    complete = widen(prepare(make_config(path)))
    assert await reasons_of(complete, learner, Backend(complete), "check_stop_ids") == []
    lacking = replace(complete, template=copy.copy(complete.template))
    lacking.template.stop_ids = (258,)
    (reason,) = await reasons_of(lacking, learner, Backend(lacking), "check_stop_ids")
    assert reason == "stop ids [258] lack 10, an end of turn by generation_config.json"


def ponder(capsys: pytest.CaptureFixture[str], config: Config, tmp_path: Path, *options: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `ponder selftest` in this process."""
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    code = run_command(lambda: app(["selftest", str(path), *options], standalone_mode=False))
    out = capsys.readouterr()
    return code, out.out, out.err


def selftest(capsys: pytest.CaptureFixture[str], config: Config, tmp_path: Path) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON report of `ponder selftest`."""
    code, out, err = ponder(capsys, config, tmp_path, "--json")
    assert code in (0, 1), err
    return code, json.loads(out)


def test_the_command_gives_its_figures_and_exit_code_0(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path
) -> None:
    code, report = selftest(capsys, make_config(model), tmp_path)
    assert code == 0
    assert report.keys() >= KEYS
    assert report["ok"] is True
    assert report["gaps"].keys() == {"before", "after"}


@pytest.mark.parametrize(("fault", "code", "words"), [
    (IgnoresTemperature, 1, "failed: on the same weights"),
    (Gone, 3, "the selftest lost its server: server http://server is down: connection refused"),
])  # fmt: skip
def test_the_command_says_what_failed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path,
    fault: type[Planted], code: int, words: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(rl.selftest, "choose_backend", lambda setup, run: Backend(setup, fault))
    done, out, err = ponder(capsys, make_config(model), tmp_path)
    assert done == code
    assert words in (out if code == 1 else err)
    assert (err.count("\n") == 1) == (code == 3)


def test_the_context_is_widened_where_the_server_is_started_here(model: Path, tmp_path: Path) -> None:
    config = make_config(model)
    assert widen(prepare(config)).context == 308
    elsewhere = override_config(config, ["rollout.servers=['http://127.0.0.1:1']"])
    assert widen(prepare(elsewhere)).context == prepare(elsewhere).context < 100
    narrow = make_config(tiny_model(tmp_path / "narrow", context=128, weights=False))
    assert widen(prepare(narrow)).context == 128


async def test_a_narrow_model_is_tested_as_far_as_it_goes(tmp_path: Path) -> None:
    narrow = widen(prepare(make_config(tiny_model(tmp_path / "narrow", context=64, weights=False))))
    backend = Backend(narrow)
    report = await Selftest(narrow, backend, build_learner(narrow.config)).run()
    await backend.aclose()
    assert report.reasons == []
