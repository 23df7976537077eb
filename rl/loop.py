"""The one loop: rollout -> reward -> learn -> push -> record, a step at a time, until the last step or a stop.
What is saved at the end of step n is all that step n + 1 needs; whatever a crash cuts off is done again on --resume."""

import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rewards.errors import BadInput, Fault
from rewards.pool import RewardPool
from rewards.types import Split
from rl.backend import Backend
from rl.build import Setup
from rl.checkpoint import Checkpoint, save_checkpoint
from rl.curriculum import Curriculum
from rl.evaluator import VOTES, Evaluator
from rl.exits import Stopped, StopSignal
from rl.flops import rollout_flops
from rl.metrics import MetricsLog, Row, alike, memory_metrics, rollout_metrics, search_metrics, variance_metrics
from rl.rundir import RunDir
from rl.scoring import RunScorer
from rl.sync import ModuleSource
from rl.views import RunProgress
from rollout.client import ServerDown
from rollout.collect import Examiner, collect
from rollout.queue import RolloutQueue
from rollout.store import SampleStore, read
from rollout.types import Group

if TYPE_CHECKING:
    from rl.learner import Learner

T = TypeVar("T")

MAX_REPLACED = 3  # further rounds of problems in a step, for groups whose chains all score alike
HARD_STOP = 10.0  # a fresh mismatch KL this many times its bound stops the run
MAX_MISSING = 1e-3  # as does this share of fresh tokens without a logprob: what can't be compared isn't trusted


class Trainer:
    """One run's loop over the parts that rl/launch.py built."""

    def __init__(
        self,
        setup: Setup,
        run: RunDir,
        backend: Backend,
        pool: RewardPool,
        learner: "Learner",
        progress: RunProgress,
        stop: StopSignal,
        replay: Path | None = None,
    ) -> None:
        """`replay` is the sample file of a run whose chains are trained on instead of new ones."""
        self.setup, self.config, self.run = setup, setup.config, run
        self.backend, self.learner, self.progress, self.stop, self.replay = backend, learner, progress, stop, replay
        self.scorer = RunScorer(pool, setup, run.audit)
        self.source = ModuleSource(learner.policy, setup.config.model.dtype, ranks=learner.ranks)
        self.version = 0  # of the learner's weights = steps done
        self.curriculum = self.drawn = Curriculum()  # as of the last step; and after the problems of the one under way
        self.saved = -1  # step of the newest checkpoint that was written, or tried
        self.whole = self._position
        self.metrics = MetricsLog(run.metrics)
        self.store = SampleStore(run.samples)
        self.evaluator = Evaluator(setup, run, pool, progress)
        self.evaluates = self.config.eval.every > 0 and replay is None

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over a checkpoint's state; its weights are the learner's already."""
        self.learner.load_state_dict(checkpoint.learner_state())
        self.curriculum = self.drawn = Curriculum.parse(checkpoint.note("curriculum"))
        self.version = self.saved = checkpoint.step
        self.whole = self._position

    async def run_all(self) -> None:
        """All steps that are left, then the final evaluation. Whatever stops it, the last whole step is saved."""
        steps = self.config.train.steps
        try:
            await self._push()
            await self._measure()  # the base, or what a stop cut off
            async with aclosing(RolloutQueue(self.config.pipeline.max_staleness, self._produce, steps)) as queue:
                for step in range(self.version + 1, steps + 1):
                    await self._step(step, queue)
                    self.stop.check()
            if self.evaluates:
                await self._evaluate("final", "test", self.config.eval.budgets)
        except Exception as error:
            self.save()
            if isinstance(error, Stopped):
                raise Stopped(error.signum, f" after step {self.version}, saved in {self.run.path}") from None
            raise

    async def _step(self, step: int, queue: RolloutQueue[list[Group]]) -> None:
        began = time.monotonic()
        groups = await self._served(partial(queue.get, step))
        row: Row = {"step": step, "version": self.version} | rollout_metrics(groups)
        row |= variance_metrics(groups) | self.scorer.figures(step, groups, self.progress.say)
        row |= memory_metrics() | search_metrics(groups, self.setup.template.response_text)
        row["time/rollout"] = time.monotonic() - began
        lengths = [(chain.prompt_len, len(chain.token_ids)) for group in groups for chain in group.chains]
        row["flops/rollout"] = rollout_flops(self.learner.shape, lengths)
        self.progress.phase(f"step {step} learning")
        row |= self.learner.step(groups, self.version, check=self._check_mismatch)
        self.version = step
        self.curriculum = self.drawn.retire(groups, self.setup.objective.retire_above)
        row["curriculum/retired"] = len(self.curriculum.retired)
        row["time/sync"] = None
        try:
            row["time/sync"] = await self._push()
        finally:  # the weights have moved: the step is recorded even if nobody will sample from them
            row["time/step"] = time.monotonic() - began
            self.store.append(step, groups)
            self.progress.step(self.metrics.append(row))
            self.whole = self._position
        await self._measure()
        if step == self.config.train.steps or step % self.config.train.checkpoint_every == 0:
            self.save()

    async def _measure(self) -> None:
        """Whatever evaluation is due for the weights that serve now and was not made yet."""
        step, config, last = self.version, self.config.eval, self.version == self.config.train.steps
        if not self.evaluates:
            return
        if step == 0:
            await self._evaluate("base", "test", config.budgets)
        if step == 0 and config.controls:
            await self._evaluate("base-votes", "test", samples=VOTES)
            await self._served(lambda: self.evaluator.run_patient(self.backend.sampler))
        if last or step % config.every == 0:
            await self._evaluate(f"step-{step}", "val")
        if config.budgets_every and step % config.budgets_every == 0 and step > 0 and not last:
            await self._evaluate(f"budgets-step-{step}", "test", config.budgets)

    @property
    def _position(self) -> tuple[int, int]:
        """Where the learner is. It is at the end of a recorded step while this equals `whole`."""
        return self.version, self.learner.updates_due

    async def _produce(self, step: int) -> list[Group]:
        if self.replay is not None:
            for _, groups in read(self.replay, step):
                return groups
            raise BadInput(f"{self.replay} holds no chains of step {step}; lower train.steps to what it holds")
        self.scorer.begin(step)
        setup, wanted, groups, self.drawn = self.setup, self.config.rollout.problems, [], self.curriculum
        examiner = Examiner(self.backend.sampler, setup.template, self.scorer, setup.spec_of, setup.plan, step)
        for _ in range(1 + MAX_REPLACED * (setup.objective.no_variance == "replace")):
            problems, self.drawn = self.drawn.draw(setup.task, wanted)
            done, total = itertools.count(1), wanted * self.config.rollout.group_size
            groups += await collect(problems, examiner, on_chain=partial(self._show, done, total))
            if not (wanted := sum(map(alike, groups[-wanted:]))):
                break
        return groups

    def _show(self, done: Iterator[int], total: int) -> None:
        self.progress.chains(next(done), total)

    async def _push(self) -> float:
        """Push the current weights; a server that dies meanwhile is started again and pushed to. Returns seconds."""
        while True:
            start = time.monotonic()
            try:
                await self.backend.push(self.source, self.version)
                return time.monotonic() - start
            except ServerDown as error:
                await self.stop.guard(self.backend.recover(str(error)))

    async def _served(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do what needs the sampler; where its server dies it is started again and pushed to, the work done anew."""
        while True:
            try:
                return await self.stop.guard(work())
            except ServerDown as error:
                await self.stop.guard(self.backend.recover(str(error)))
                await self._push()

    async def _evaluate(self, label: str, split: Split, budgets: Sequence[int] = (), samples: int = 0) -> None:
        evaluate = self.evaluator.run_once
        await self._served(lambda: evaluate(label, split, self.backend.sampler, budgets, samples))

    def _check_mismatch(self, stats: Row) -> None:
        """Server and learner must agree on tokens that these very weights made; called before any update."""
        if stats["mismatch/missing"] > MAX_MISSING:
            raise Fault(
                f"the sampler gave no log-probability for {stats['mismatch/missing']:.1%} of the fresh tokens (at most "
                f"{MAX_MISSING:.1%} are borne); look for nulls in the server's answers"
            )
        value, bound = stats["mismatch_kl/fresh"], self.config.mismatch_bound
        if not value > bound:
            return
        text = (
            f"mismatch_kl/fresh is {value:.2e}, its bound {bound:.0e}: server and learner disagree on fresh tokens. "
            "Usual causes: weights not pushed or a stale prefix cache, another temperature or dtype on one side, "
            "a chat template or stop id that differs; `ponder selftest` names which"
        )
        if value > HARD_STOP * bound:
            raise Fault(text)
        self.progress.say(f"warning: {text}")

    def save(self) -> None:
        """Checkpoint the last whole step, once; nothing where the weights are on their way to the next one."""
        ranks = self.learner.ranks
        if self.saved == self.version or self.whole != self._position or (ranks.sharded and ranks.lost):
            return
        from rl.model import save_model

        self.saved = self.version
        self.progress.phase("saving")
        write = partial(save_model, self.learner.policy, self.config.model.path, ranks=ranks)
        state, keep = self.learner.state_dict(), self.config.train.keep_checkpoints
        notes = {"fingerprint": self.setup.fingerprint, "curriculum": self.curriculum.dump()}
        save_checkpoint(self.run.checkpoints, self.version, write, state, notes, keep)
