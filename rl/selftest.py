"""`ponder selftest`: proof, on the user's own model, that server and learner compute the same thing.
What is compared and no more, and how the pattern of what differs names the cause: docs/decisions/selftest.md."""

import asyncio
import contextlib
import json
import math
import random
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from rewards.errors import Fault
from rewards.types import Problem, Score
from rl.backend import Backend, choose_backend
from rl.build import Setup, build_learner, model_context, prepare
from rl.config import Config, override_config
from rl.flops import is_adapter
from rl.learner import Learner
from rl.memory import count_parameters
from rl.rundir import RunDir
from rl.sync import ModuleSource
from rl.views import RunProgress, words
from rollout.chain import bare_chain, continue_chain
from rollout.client import ServerDown
from rollout.collect import Examiner, collect, gather_all
from rollout.prompt import find_stop_ids, read_json
from rollout.sampling import SamplingParams
from rollout.types import Chain

SHORT_PROMPT = 12  # tokens: below a block of the prefix cache (16 on a GPU, 128 on a CPU), so never found in it
LONG_PROMPT = 300  # tokens: blocks enough to be found there
CHAINS, TOKENS = 8, 24
TEMPERATURES = (0.7, 1.0)

Gaps = dict[str, list[float]]
"""Kind of prompt (short, long, repeated) -> mean |server - learner| of the worst chain at TEMPERATURES, nats."""

REASONS: dict[str, str] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())


@dataclass
class Report:
    ratio_max: float = 1.0
    mismatch: float = 0.0
    parity_before: float = 0.0
    parity_after: float = 0.0
    unpushed_seen: bool = False
    stop_ids: bool = False
    gaps: dict[str, Gaps] = field(default_factory=dict)  # before and after the push of a change
    modules: dict[str, float] = field(default_factory=dict)  # LoRA: the gap after a push that changes one layer alone
    reasons: list[str] = field(default_factory=list)  # a line for each check that did not hold

    def require(self, holds: bool, reason: str, /, **figures: Any) -> None:
        if not holds:
            self.reasons.append(REASONS[reason].format(**figures))


def run_selftest(config: Config, as_json: bool = False) -> bool:
    """Run all checks, print them, and say whether they held. Raises BadInput, Fault."""
    config = override_config(config, ["train.steps=2", "train.learning_rate=0.0", "objective.kl_weight=0.0"])
    setup = widen(prepare(config))
    with tempfile.TemporaryDirectory(prefix="ponder-selftest-") as scratch:
        selftest = asyncio.run(_run(setup, RunDir(Path(scratch))))
    report = selftest.report
    if as_json:
        print(json.dumps(asdict(report) | {"ok": not report.reasons}, indent=1))
    else:
        lost = worst(report.modules.values()) if report.modules else None
        print(words("selftest", report, lost, selftest.bound, config.mismatch_bound, TEMPERATURES), end="")
    return not report.reasons


def widen(setup: Setup) -> Setup:
    """The same set-up with a context that also holds the long prompt; a server elsewhere has the context it has."""
    limit = setup.context if setup.config.rollout.servers else model_context(setup.config.model.path)
    return replace(setup, context=min(max(setup.context, LONG_PROMPT + TOKENS), limit))


async def _run(setup: Setup, run: RunDir) -> "Selftest":
    learner = build_learner(setup.config)  # first, so that a bad model directory is refused before a server starts
    with RunProgress(total=2) as progress:
        async with contextlib.aclosing(choose_backend(setup, run)) as backend:
            await backend.check()
            await backend.start(progress.waiting)
            progress.phase("comparing")
            selftest = Selftest(setup, backend, learner)
            try:
                await selftest.run()
            except ServerDown as error:
                raise Fault(f"the selftest lost its server: {error}") from None
    return selftest


class Selftest:
    """Every check against a back end that runs. The learner's weights, and the sampler's, end as the learner's were."""

    def __init__(self, setup: Setup, backend: Backend, learner: Learner) -> None:
        self.setup, self.backend, self.learner = setup, backend, learner
        self.source = ModuleSource(learner.policy, setup.config.model.dtype)
        half, path = setup.config.model.dtype == "bfloat16", setup.config.model.path
        # of mean |server - learner|, nats
        self.bound = 0.02 if half else 1e-5 if count_parameters(path) < 10_000_000 else 1e-4
        self.prompts = [setup.template.encode(problem.prompt) for problem in setup.problems(1)[:CHAINS]]
        self.short_prompt = self.prompts[0][-SHORT_PROMPT:]
        self.version = -1
        self.chains: list[Chain] = []  # the last ones that were compared
        self.report = Report()

    async def run(self) -> Report:
        await self.check_pushes()
        await self.check_modules()
        await self.check_steps()
        await self.check_stop_ids()
        return self.report

    async def push(self) -> None:
        self.version += 1
        await self.backend.push(self.source, self.version)

    async def check_pushes(self) -> None:
        """Agreement after a first push, disagreement on a change that is not pushed, agreement when it is."""
        await self.push()
        before = await self.measure()
        everything = list(self.learner.policy.parameters())
        with restored(everything):
            self._change_visibly(everything)
            unpushed = await self.measure()
            await self.push()
            after = await self.measure()
        await self.push()
        report, least = self.report, float(np.min(list(unpushed.values())))
        report.gaps = {"before": before, "after": after}
        report.parity_before, report.parity_after = worst(before.values()), worst(after.values())
        report.unpushed_seen = least > 2 * self.bound
        first, then = diagnose(before, self.bound), diagnose(after, self.bound)
        new = then if then != first else None  # each cause that the figures show is named once
        for when, cause, gaps in (("on the same weights", first, before), ("after a push", new, after)):
            if cause == "everything":
                moved = np.abs(np.subtract(after["short"], unpushed["short"])).max() > self.bound
                cause = "push" if not moved else "head" if not await self._head_follows() else cause
            if cause is not None:
                figures = {kind: worst(each) for kind, each in gaps.items()}
                report.reasons.append(f"{when}: {REASONS[cause].format(**figures)}")
        report.require(not least <= 2 * self.bound, "unseen", least=least)

    async def check_modules(self) -> None:
        """With LoRA: that each adapted layer alone moves the learner, and by a push the sampler to the same place."""
        layers: dict[str, list[Tensor]] = {}
        for name, p in self.learner.policy.named_parameters():
            if is_adapter(name):
                layers.setdefault(name.partition(".lora_")[0], []).append(p)
        for name, weights in layers.items():
            with restored(weights):
                alive = self._change_visibly(weights)
                await self.push()
                chains = await gather_all(self._decode(self.short_prompt, TOKENS, (), seed) for seed in range(2))
                self.report.modules[name] = gap = worst(self._distances(chains, 1.0))
            self.report.require(alive, "dead", layer=name)
            self.report.require(gap <= self.bound, "lost", layer=name, gap=gap)
        await self.push()

    async def measure(self) -> Gaps:
        """How far server and learner are apart on fresh tokens behind short prompts, a new long one and a known one."""
        words = sorted({token for prompt in self.prompts for token in prompt})
        starts = [self.prompts[i % len(self.prompts)][-SHORT_PROMPT:] for i in range(CHAINS)]
        length = min(LONG_PROMPT, self.setup.context - TOKENS)
        gaps: Gaps = {"short": [], "long": [], "repeated": []}
        for temperature in TEMPERATURES:
            ends = (rng.choices(words, k=length) for rng in (random.Random(), random.Random(0)))
            prompts = enumerate([*starts, *ends])
            self.chains = await gather_all(self._decode(p, TOKENS, (), seed, temperature) for seed, p in prompts)
            *short, long, repeated = self._distances(self.chains, temperature)
            for each, gap in zip(gaps.values(), (worst(short), long, repeated), strict=True):
                each.append(gap)
        return gaps

    def _distances(self, chains: list[Chain], temperature: float) -> list[float]:
        """Mean |server - learner| of each chain, nats."""
        learner = self.learner.score_logprobs(chains, temperature)
        server = [np.asarray(chain.sampler_logprobs)[chain.prompt_len :] for chain in chains]
        return [float(np.abs(a.numpy() - b).mean()) for a, b in zip(learner, server, strict=True)]

    async def _decode(self, prompt: list[int], *sampling: Any) -> Chain:
        params = SamplingParams(*sampling)  # tokens, stop ids, seed, temperature
        return await continue_chain(self.backend.sampler, bare_chain("selftest", "selftest", prompt), (), params)

    @torch.no_grad()
    def _change_visibly(self, weights: list[Tensor]) -> bool:
        """Noise on some weights, more until the learner's own log-probabilities move well beyond the bound: whether."""
        old = self.learner.score_logprobs(self.chains)
        for attempt in range(6):
            generator = torch.Generator().manual_seed(attempt)
            for p in weights:  # relative to their mean magnitude; absolute where all are zero (biases)
                noise = torch.randn(p.shape, generator=generator).to(p)
                p.add_(noise * 0.05 * 2**attempt * (float(p.abs().mean()) or 1.0))
            new = self.learner.score_logprobs(self.chains)
            if np.mean([(a - b).abs().mean() for a, b in zip(old, new, strict=True)]) > 5 * self.bound:
                return True
        return False

    async def _head_follows(self) -> bool:
        """Whether the sampler's answers change when a push changes nothing but the output head."""

        async def answers() -> list[tuple[int, float]]:
            chains = await gather_all(self._decode(self.short_prompt, 1, (), seed) for seed in range(2 * CHAINS))
            return [(chain.token_ids[-1], chain.sampler_logprobs[-1]) for chain in chains]

        old = await answers()
        with restored(self.learner.policy.parameters()):
            head: Tensor = self.learner.policy.get_output_embeddings().weight.detach()
            rows = torch.ones(len(head), dtype=torch.bool, device=head.device)
            rows[self.short_prompt] = False  # a tied embedding reads these, and they stay
            head[rows] *= -1
            await self.push()
            new = await answers()
        await self.push()
        return any(a[0] != b[0] or not abs(a[1] - b[1]) <= self.bound for a, b in zip(old, new, strict=True))

    async def check_steps(self) -> None:
        """Two steps of the run's own kind at learning rate 0: the mismatch is small, the ratio 1, no weight moves."""
        setup, config, report = self.setup, self.setup.config, self.report

        def weights_sum() -> float:  # moves when any weight does
            return float(sum(p.detach().double().sum() for p in self.learner.policy.parameters()))

        total, rows = weights_sum(), []
        for step in (1, 2):
            plan = replace(setup.plan, samples=2)
            examiner = Examiner(self.backend.sampler, setup.template, EveryOther(), setup.spec_of, plan, step)
            groups = await collect(setup.problems(step)[:CHAINS], examiner)
            rows.append(self.learner.step(groups, self.version))
        report.ratio_max = worst(row["ratio/max"] for row in rows)
        report.mismatch = worst(row["mismatch_kl/fresh"] for row in rows)
        figures = {"temperature": config.rollout.temperature, "bound": config.mismatch_bound}
        report.require(report.mismatch <= config.mismatch_bound, "mismatch", mismatch=report.mismatch, **figures)
        report.require(abs(report.ratio_max - 1) < 1e-4, "ratio", ratio=report.ratio_max)
        report.require(weights_sum() == total, "moved")

    async def check_stop_ids(self) -> None:
        """That the sampler stops at each id it is given, and that the template gives every id that ends a turn."""
        prompt, template, report = self.prompts[0], self.setup.template, self.report
        room, failed = min(TOKENS, self.setup.context - len(prompt)), len(report.reasons)
        free = (await self._decode(prompt, room, (), 0)).response_ids
        report.require(len(free) == room, "unasked", found=len(free), room=room)
        late = max(free, key=free.index)  # the token that comes up last for the first time
        for stops in ([template.stop_ids[0], late], [late, template.stop_ids[0]]):
            end = min(free.index(stop) for stop in stops if stop in free) + 1
            cut = await self._decode(prompt, room, tuple(stops), 0)
            found, reason = cut.response_ids, cut.finish_reason
            held = found == free[:end] and reason == "stop"
            figures = {"found": len(found), "reason": reason, "token": free[end - 1], "end": end}
            report.require(held, "unheard", stops=stops, **figures)
        given = list(template.stop_ids)
        for stop, place in expected_stop_ids(template.tokenizer, Path(self.setup.config.model.path)).items():
            report.require(stop in given, "lacking", stops=given, stop=stop, place=place)
        report.stop_ids = len(report.reasons) == failed


class EveryOther:
    """A scorer that gives every other chain of a group a 1, whatever the task's rewards say."""

    async def score(self, chain_id: str, response: str, problem: Problem, *rest: Any) -> Score:
        odd = int(chain_id.rsplit("/", 1)[-1]) % 2 == 1
        return Score(float(odd), odd, "ok" if odd else "wrong", id=chain_id)


def diagnose(gaps: Gaps, bound: float) -> str | None:
    """The cause that a pattern of gaps points to, a key of REASONS; None where nothing is beyond the bound."""
    if math.isnan(worst(gaps.values())):
        return "broken"
    if worst(gaps["short"]) > bound:
        return "everything" if gaps["short"][TEMPERATURES.index(1.0)] > bound else "temperature"
    if worst(gaps["long"]) > bound:
        return "long"
    return "cache" if worst(gaps["repeated"]) > bound else None


def worst(values: Iterable[Any]) -> float:
    """The largest of numbers, or of lists of them; NaN where there is one, which Python's max may lose."""
    return float(np.max(list(values)))


@contextlib.contextmanager
def restored(weights: Iterable[Tensor]) -> Iterator[None]:
    """Give some of the learner's weights back exactly at the end."""
    kept = [(p, p.detach().clone()) for p in weights]
    try:
        yield
    finally:
        with torch.no_grad():
            for p, old in kept:
                p.copy_(old)


def expected_stop_ids(tokenizer: Any, path: Path) -> dict[int, str]:
    """Each id that ends a turn by a model's files or by what its chat template writes, and where that is said."""
    found = dict.fromkeys(find_stop_ids(tokenizer), "the tokenizer")
    for name in ("config.json", "generation_config.json"):
        found = dict.fromkeys(find_stop_ids(tokenizer, read_json(path / name)), name) | found
    words = "forty-two"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": words}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # no template, or one that takes no assistant's words: it says nothing about their end
        return found
    _, written, tail = text.rpartition(words)
    ids = tokenizer.encode(tail.lstrip(), add_special_tokens=False) if written else []
    special = [token for token in ids[:1] if token in tokenizer.added_tokens_decoder]
    return dict.fromkeys(special, "the chat template") | found
