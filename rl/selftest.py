"""`ponder selftest`: proof, on the user's own model, that server and learner compute the same thing.

Two steps at learning rate 0, log-probabilities compared on decoded tokens at two temperatures before and after pushes,
a prompt long enough to sit in the prefix cache, a change that is not pushed (which must be seen), and the stop ids.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from rl.backend import Backend, choose_backend
from rl.build import Setup, build_learner, model_context, open_pool, prepare, weight_source
from rl.config import Config, override_config
from rl.progress import RunProgress
from rl.rundir import RunDir
from rl.sync import parity
from rollout.chain import start_chain
from rollout.collect import collect, gather_all
from rollout.prompt import Template, find_stop_ids, read_json
from rollout.sampling import SamplingParams
from rollout.types import Chain

if TYPE_CHECKING:
    from rl.learner import Learner

TEMPERATURES = (0.7, 1.0)
LONG_PROMPT = 300
"""Tokens; several blocks of the prefix cache, which a short prompt never fills."""
CHAINS = 8
TOKENS = 24
NOISE = 0.05
"""Relative size of the change that is and is not pushed."""
SMALL_MODEL = 10_000_000


@dataclass
class Report:
    """What was found; `reasons` holds one line for each check that did not hold."""

    ratio_max: float = 1.0
    parity_before: float = 0.0
    parity_after: float = 0.0
    unpushed_seen: bool = False
    stop_ids: bool = False
    reasons: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every check held."""
        return not self.reasons

    def require(self, holds: bool, reason: str) -> None:
        """Note `reason` unless the check holds."""
        if not holds:
            self.reasons.append(reason)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        names = ("ratio_max", "parity_before", "parity_after", "unpushed_seen", "stop_ids", "ok", "reasons")
        return {name: getattr(self, name) for name in names}


def run_selftest(config: Config, as_json: bool = False) -> bool:
    """Run all checks, print them, and say whether they held. Raises BadInput, Fault."""
    config = override_config(config, ["train.steps=2", "train.learning_rate=0.0", "objective.kl_weight=0.0"])
    setup = widen(prepare(config))
    with tempfile.TemporaryDirectory(prefix="ponder-selftest-") as scratch:
        report = asyncio.run(_run(setup, RunDir(Path(scratch))))
    if as_json:
        print(json.dumps(report.as_dict(), indent=1))
    else:
        print_report(report, parity_bound(config, setup))
    return report.ok


def widen(setup: Setup) -> Setup:
    """The same set-up with a context that also holds the long prompt, as far as the model goes."""
    wanted = max(setup.context, LONG_PROMPT + TOKENS)
    return replace(setup, context=min(wanted, model_context(setup.config.model.path)))


async def _run(setup: Setup, run: RunDir) -> Report:
    with RunProgress(total=2) as progress:
        backend = choose_backend(setup, run)
        async with contextlib.aclosing(backend):
            starting = asyncio.create_task(backend.start(progress.waiting))
            await asyncio.sleep(0)
            learner = build_learner(setup.config)
            await starting
            return await check_all(setup, backend, learner)


async def check_all(setup: Setup, backend: Backend, learner: Learner) -> Report:
    """Every check against a backend that runs. The learner's weights are left as they were."""
    report, bound = Report(), parity_bound(setup.config, setup)
    source = weight_source(setup.config, learner)
    await backend.push(source, 0)
    report.parity_before = await disagreement(setup, backend, learner)
    report.require(
        report.parity_before <= bound,
        f"parity before any change is {report.parity_before:.1e}, bound {bound:.0e}: server and learner disagree "
        "on the same weights; look for temperature, logprobs-mode or dtype on one side",
    )
    await _steps(setup, backend, learner, report)
    with changed(learner):
        unpushed = await disagreement(setup, backend, learner)
        report.unpushed_seen = unpushed > 10 * bound
        report.require(
            report.unpushed_seen, f"a change that was not pushed shows only {unpushed:.1e}: too little to see"
        )
        await backend.push(source, 1)
        report.parity_after = await disagreement(setup, backend, learner)
    report.require(
        report.parity_after <= bound,
        f"parity after a push is {report.parity_after:.1e}, bound {bound:.0e}: the server kept something old; look "
        "for a stale prefix cache or an output head that was not rebuilt",
    )
    await backend.push(source, 2)
    await check_stop_ids(setup, backend, report)
    return report


async def _steps(setup: Setup, backend: Backend, learner: Learner, report: Report) -> None:
    """Two steps at learning rate 0: the ratio stays 1 and no weight moves."""
    before = weights_sum(learner)
    async with open_pool(setup.config) as pool:
        for step in (1, 2):
            groups = await collect(
                setup.problems(step)[:CHAINS],
                sampler=backend.sampler,
                template=setup.template,
                pool=pool,
                spec_of=setup.spec_of,
                group_size=setup.config.rollout.group_size,
                max_tokens=setup.config.rollout.max_tokens,
                temperature=setup.config.rollout.temperature,
                budget=setup.budget,
                run_seed=setup.config.seed,
                step=step,
            )
            stats = learner.step(groups, version=0)
            if stats["ratio/max"] == stats["ratio/max"]:  # NaN where no group had a signal
                report.ratio_max = max(report.ratio_max, stats["ratio/max"])
    report.require(abs(report.ratio_max - 1) < 1e-4, f"ratio/max is {report.ratio_max:.6f} at learning rate 0, not 1")
    report.require(weights_sum(learner) == before, "weights moved at learning rate 0")


async def disagreement(setup: Setup, backend: Backend, learner: Learner) -> float:
    """The worst mean |server - learner| over temperatures, on short prompts and on a long one that repeats."""
    worst = 0.0
    for temperature in TEMPERATURES:
        chains = await _sample(setup, backend, temperature)
        for part in (chains[:CHAINS], chains[CHAINS:]):
            learner_logprobs = learner.score_logprobs(part, temperature)
            worst = max(worst, *(_mean_gap(a, chain) for a, chain in zip(learner_logprobs, part, strict=True)))
    return worst


def _mean_gap(learner_logprobs: Any, chain: Chain) -> float:
    import torch

    sampler = torch.tensor([x for x, s in zip(chain.sampler_logprobs, chain.sampled, strict=True) if s])
    return parity(learner_logprobs, sampler)[0]


async def _sample(setup: Setup, backend: Backend, temperature: float) -> list[Chain]:
    """Chains of the task's prompts and, last, of one long prompt sent twice: the second meets the prefix cache."""
    prompts = [setup.template.encode(problem.prompt) for problem in setup.problems(1)[:CHAINS]]
    rng = random.Random(0)
    words = sorted({token for prompt in prompts for token in prompt})
    long = [rng.choice(words) for _ in range(min(LONG_PROMPT, setup.context - TOKENS))]
    room = min(TOKENS, *(setup.context - len(prompt) for prompt in prompts))

    def sample(name: str, prompt: list[int], seed: int) -> Any:
        params = SamplingParams(room, setup.template.stop_ids, seed, temperature)
        return start_chain(backend.sampler, name, name, prompt, params)

    chains = await gather_all(sample(f"short-{i}", prompt, i) for i, prompt in enumerate(prompts))
    return [*chains, await sample("long", long, 0), await sample("long again", long, 1)]


async def check_stop_ids(setup: Setup, backend: Backend, report: Report) -> None:
    """That the server stops at any id it is given, and that the template gives every id that ends a turn."""
    prompt = setup.template.encode(setup.problems(1)[0].prompt)
    free = await start_chain(backend.sampler, "free", "free", prompt, SamplingParams(TOKENS, (), 0, 0.0))
    stop = free.response_ids[len(free.response_ids) // 2]
    params = SamplingParams(TOKENS, (setup.template.stop_ids[0], stop), 0, 0.0)
    cut = await start_chain(backend.sampler, "cut", "cut", prompt, params)
    honoured = (
        cut.response_ids == free.response_ids[: free.response_ids.index(stop) + 1] and cut.finish_reason == "stop"
    )
    report.require(honoured, f"the server went on past token {stop}, the second of two stop ids")
    missing = missing_stop_ids(setup.template, Path(setup.config.model.path))
    report.require(
        not missing, f"stop ids {list(setup.template.stop_ids)} lack {missing}, which end a turn for this model"
    )
    report.stop_ids = honoured and not missing


def missing_stop_ids(template: Template, path: Path) -> list[int]:
    """Ids that end a turn by the model's files or by its chat template's own rendering, and that are not stop ids."""
    files = [read_json(path / name) for name in ("config.json", "generation_config.json")]
    expected = find_stop_ids(template.tokenizer, *files)
    if template.tokenizer.chat_template is not None:
        expected.append(rendered_end_of_turn(template.tokenizer))
    return sorted(set(expected) - set(template.stop_ids))


def rendered_end_of_turn(tokenizer: Any) -> int:
    """The first id that a chat template puts behind an assistant's words."""
    words = "forty-two"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": words}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    tail = text[text.rindex(words) + len(words) :].lstrip()
    return int(tokenizer.encode(tail, add_special_tokens=False)[0]) if tail else int(tokenizer.eos_token_id)


@contextlib.contextmanager
def changed(learner: Learner) -> Iterator[None]:
    """The learner's weights with a few percent of noise on every tensor, restored exactly afterwards."""
    import torch

    parameters = list(learner.policy.parameters())
    kept = [p.detach().clone() for p in parameters]
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in parameters:
            p.add_(torch.randn(p.shape, generator=noise).to(p) * NOISE * p.abs().mean())
    try:
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(parameters, kept, strict=True):
                p.copy_(old)


def weights_sum(learner: Learner) -> float:
    """A number that moves when any weight does."""
    return float(sum(p.detach().double().sum() for p in learner.policy.parameters()))


def parity_bound(config: Config, setup: Setup) -> float:
    """Bound of mean |difference| by dtype and size, nats."""
    if config.model.dtype == "bfloat16":
        return 0.02
    from rl.plan import count_parameters

    return 1e-5 if count_parameters(config.model.path) < SMALL_MODEL else 1e-4


def print_report(report: Report, bound: float) -> None:
    """A table of the figures and, below it, why a check did not hold."""
    table = Table("check", "figure", "wanted")
    table.add_row("ratio at learning rate 0, largest", f"{report.ratio_max:.7f}", "1")
    table.add_row("parity before a push, mean |difference|", f"{report.parity_before:.1e}", f"at most {bound:.0e}")
    table.add_row("parity after a push", f"{report.parity_after:.1e}", f"at most {bound:.0e}")
    table.add_row("a change that is not pushed is seen", str(report.unpushed_seen), "True")
    table.add_row("stop ids honoured and complete", str(report.stop_ids), "True")
    console = Console()
    console.print(table)
    for reason in report.reasons:
        console.print(f"failed: {reason}", highlight=False)
