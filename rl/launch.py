"""Start or resume a run: checks first, then the heavy parts, then the loop, then everything reaped.
Or the checks alone, and what would run, and where."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rewards.errors import BadInput
from rewards.gold import VERIFIERS, first_problems, score_gold, skip_bad_rows
from rewards.pool import RewardPool
from rewards.types import Prompt
from rl.backend import Backend, choose_backend
from rl.build import Setup, build_learner, examine, prepare
from rl.checkpoint import Checkpoint, latest_checkpoint, remove_after
from rl.config import Config
from rl.evaluator import clear_evaluations, write_summary
from rl.exits import StopSignal
from rl.loop import Trainer
from rl.memory import Shapes, place
from rl.metrics import truncate_metrics
from rl.parallel import ONE, Ranks, join
from rl.rundir import RunDir
from rl.scoring import FAILED
from rl.sync import ModuleSource
from rl.views import RunProgress, words
from rollout import store
from rollout.prompt import Template
from rollout.server.hardware import probe, stated_hardware

if TYPE_CHECKING:
    from rl.learner import Learner

GOLD_SECONDS = 5.0  # for which the gold answers of a file's rows are scored before a run
NAMED = 5  # offending rows that are named


def launch(
    config: Config,
    run: RunDir,
    *,
    resume: bool = False,
    replay: Path | None = None,
    overwrite: bool = False,
    size: int = 1,
) -> None:
    """Run the whole training in `run`. Bad input is refused before anything in the directory changes. Of `size` ranks
    the first does so, the others follow it."""
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # GPU 0 is the same to us, the server and nvidia-smi
    ranks = ONE if size == 1 else join(os.environ, config.train.sharding == "fsdp2")
    if ranks.rank > 0:
        ranks.follow(commands(config, run, ranks))
    with ranks.ending():
        _launch(config, run, ranks, resume, replay, overwrite)


def _launch(config: Config, run: RunDir, ranks: Ranks, resume: bool, replay: Path | None, overwrite: bool) -> None:
    setup = replace(prepare(config), ranks=ranks.size)
    samples = RunDir(replay).samples if replay is not None else None
    if samples is not None and not samples.is_file():
        raise BadInput(f"--replay {replay}: no {samples.name} there; name a run directory that holds chains")
    with run.lock():
        checkpoint = latest_checkpoint(run.checkpoints, partial(print, "ponder:", file=sys.stderr)) if resume else None
        if checkpoint is not None and checkpoint.note("fingerprint") != setup.fingerprint:
            raise BadInput(f"task {setup.task.name} gives other problems than when {run.path} was saved")
        if checkpoint is not None and checkpoint.step >= config.train.steps and run.summary.exists():
            print(f"{run.path}: all {checkpoint.step} steps are done, nothing left to do; raise train.steps to go on")
            return
        if not (resume or overwrite):
            run.check_free()
        asyncio.run(_run(setup, run, ranks, checkpoint, samples, resume))


def commands(config: Config, run: RunDir, ranks: Ranks) -> dict[str, Callable[..., object]]:
    """What rank 0 may ask of the others, as they do it."""
    built: list[Learner] = []

    def build(step: int) -> None:
        checkpoint = Checkpoint(run.checkpoints / f"step-{step}", step) if step else None
        built.append(build_learner(config, str(checkpoint.path) if checkpoint else None, ranks))
        if checkpoint is not None:
            built[0].load_state_dict(checkpoint.learner_state())

    return {
        "build": build,
        "step": lambda version: built[0].step((), version),
        "state_dict": lambda: built[0].state_dict(),
        "tensor": lambda name, dtype, part: ModuleSource(built[0].policy, dtype, part, ranks).tensor(name),
    }


async def _run(
    setup: Setup, run: RunDir, ranks: Ranks, checkpoint: Checkpoint | None, samples: Path | None, resume: bool
) -> None:
    """Check, make the directory ready, then start what is heavy and run the loop."""
    config, rewards, done = setup.config, setup.config.rewards, checkpoint.step if checkpoint else 0
    with StopSignal() as stop:
        async with RewardPool(rewards.workers, rewards.time_limit, rewards.memory_gb) as pool:
            if samples is None:
                await stop.guard(check_gold(setup, pool))
            async with contextlib.aclosing(choose_backend(setup, run, replay=samples is not None)) as backend:
                await stop.guard(backend.check())
                if resume:  # cut back to the checkpoint: later lines, frames, drafts and evaluations go
                    remove_after(run.checkpoints, done)
                    truncate_metrics(run.metrics, done)
                    truncate_metrics(run.audit, done)
                    store.truncate(run.samples, done)
                    clear_evaluations(run, done, finished=done >= config.train.steps)
                    print(f"ponder: {run.path} goes on after step {done}", file=sys.stderr)
                    run.write_config(config)  # with what this resume overrides: the next one goes on with the same
                else:
                    run.create(config)
                with RunProgress(config.train.steps, done) as progress:
                    learner = await stop.guard(_start(backend, config, ranks, checkpoint, progress))
                    trainer = Trainer(setup, run, backend, pool, learner, progress, stop, samples)
                    if checkpoint is not None:
                        trainer.restore(checkpoint)
                    await trainer.run_all()
    write_summary(setup, run)
    from rl.report.build import build_report  # matplotlib loads here

    print(f"report: {build_report(run.path)}")


async def _start(
    backend: Backend, config: Config, ranks: Ranks, checkpoint: Checkpoint | None, progress: RunProgress
) -> "Learner":
    """Start what samples, and load the model beside it."""
    starting = asyncio.create_task(backend.start(progress.waiting))
    try:
        await asyncio.sleep(0)  # the server process is on its way now, or refused
        if starting.done() or config.rollout.colocate:
            await starting  # colocated: vLLM measures the GPU as it starts, nobody else may take of it meanwhile
        with ranks.together("build", checkpoint.step if checkpoint else 0):
            learner = build_learner(config, str(checkpoint.path) if checkpoint else None, ranks)
        await starting
        return learner
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)


async def check_gold(setup: Setup, pool: RewardPool) -> None:
    """Load the rewards and score gold answers before anything heavy starts. Raises BadInput naming the rows."""
    config, task, spec_of, say = setup.config, setup.task, setup.spec_of, partial(print, sep="\n    ")
    parts = getattr(task, "parts", [task])
    for spec in [config.reward] if config.reward is not None else task.rewards:
        await pool.load(spec)
    if config.rewards.skip_bad_gold and (skipped := await skip_bad_rows(pool, parts, spec_of)):
        say(f"{len(skipped)} rows are skipped, their gold answers are not correct", *skipped[:NAMED])
    begun = [score_gold(pool, part, first_problems(part), spec_of, GOLD_SECONDS / len(parts)) for part in parts]
    found = [gold for part in begun for gold in await part]
    bad = [gold for gold in found if not gold.score.correct]
    own = config.reward is None  # a plugin that refuses some is only told so: it may well judge something else
    rows = [g for g in bad if spec_of(g.problem) in VERIFIERS or (own and g.score.status not in FAILED)]
    if rows:
        raise BadInput(
            f"{len(rows)} of {len(found)} gold answers are not correct; mend the rows or the reward (`ponder tasks "
            f"check '{task.name}'`), or leave rows of a file out with rewards.skip_bad_gold=true: "
            f"{'; '.join(map(str, rows[:NAMED]))}"
        )
    say(f"gold answers of {len(found)} problems scored, {len(found) - len(bad)} are correct", *bad[:NAMED])


def print_plan(config: Config) -> None:
    """`--dry-run`: check everything that can be checked without starting anything, and say what would run, and where:
    on this machine, or on the one that `hardware` states. Raises BadInput where something is wrong or doesn't fit.
    A hub's name in `model.path` is enough: see shapes_path."""
    hardware = stated_hardware(probe(), config.hardware.gpus, config.hardware.gpu_memory_gb)
    model, template = config.model, cast(Template, ByteCount(config.model.system_prompt or ""))
    if local := Path(model.path).is_dir():
        template = Template.load(model.path, think=model.think, system_prompt=model.system_prompt)
    setup = examine(config, hardware, template)
    placement = place(config, hardware, setup.context)
    print(words("plan", setup, Shapes.of(config), placement, local), end="")
    placement.check()


class ByteCount:
    """In place of a tokenizer that is not here: a token for each byte, more than any byte-level tokenizer makes."""

    close_ids = ()  # counted in `encode`

    def __init__(self, system_prompt: str) -> None:
        self.system_prompt = system_prompt

    def encode(self, prompt: Prompt, *how: Any) -> list[int]:
        """As many ids as the prompt may have at most, and 64 for a chat template and a forced close."""
        text = prompt if isinstance(prompt, str) else "".join(message["content"] for message in prompt)
        return [0] * (len((self.system_prompt + text).encode()) + 64)
