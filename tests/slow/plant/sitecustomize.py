"""Hold a training run at chosen points, so that a test can kill something exactly there.

HOLD is a list of PHASE:STEP. At each, the process writes HOLD_DIR/PHASE:STEP and blocks until that file is gone. HIDE
names a package that is to look as if it were not installed.
"""

import asyncio
import os
import sys
import time
from importlib.machinery import PathFinder
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "faults"))
from after_import import after_import

HOLDS = os.environ.get("HOLD", "").split()
LIMIT = 200  # seconds; a test that forgets us must not leave us behind


def hold(phase: str, step: int) -> None:
    """Block where this point is asked for, once."""
    point = f"{phase}:{step}"
    if point not in HOLDS:
        return
    HOLDS.remove(point)
    mark = Path(os.environ["HOLD_DIR"], point)
    mark.touch()
    deadline = time.monotonic() + LIMIT
    while mark.exists():
        if time.monotonic() > deadline:
            os._exit(97)
        time.sleep(0.01)


def in_rollout(loop) -> None:
    """When the first chain of a step is scored: the other requests are under way."""
    collect = loop.collect

    def holding(problems, examiner, on_chain):
        def seen():
            on_chain()
            hold("rollout", examiner.step)

        return collect(problems, examiner, on_chain=seen)

    loop.collect = holding


def in_reward(pool) -> None:
    """While a worker has an item."""
    score = pool.RewardPool.score

    async def holding(self, chain_id, *args, **kwargs):
        scoring = asyncio.ensure_future(score(self, chain_id, *args, **kwargs))
        await asyncio.sleep(0.001)
        hold("reward", int(chain_id.partition("/")[0]) if chain_id[0].isdigit() else -1)
        return await scoring

    pool.RewardPool.score = holding


def in_learn(learner) -> None:
    """After the first optimizer step of a step that has several."""
    step, update = learner.Learner.step, learner.Learner._update

    def noting(self, groups, version, *args, **kwargs):
        self.held_step = version + 1
        return step(self, groups, version, *args, **kwargs)

    def holding(self, *args, **kwargs):
        update(self, *args, **kwargs)
        hold("learn", self.held_step)

    learner.Learner.step, learner.Learner._update = noting, holding


def in_push(control) -> None:
    """When the file is written and the server paused, before (push) and after (pushed) it has loaded the weights."""
    update, finish_update = control.ServerControl.update, control.ServerControl.finish_update

    async def holding(self, payload):
        if payload["path"]:
            hold("push", int(payload["path"].rpartition("-v")[2].partition(".")[0]))
        await update(self, payload)

    async def holding_again(self, version):
        hold("pushed", version)
        await finish_update(self, version)

    control.ServerControl.update, control.ServerControl.finish_update = holding, holding_again


def in_samples(store) -> None:
    """In the middle of a frame."""
    append = store.SampleStore.append

    def holding(self, step, groups):
        size = self.path.stat().st_size if self.path.exists() else 0
        append(self, step, groups)
        if f"samples:{step}" in HOLDS:
            os.truncate(self.path, (size + self.path.stat().st_size) // 2)
            hold("samples", step)  # a kill is what makes sense here: half a frame stays

    store.SampleStore.append = holding


def in_metrics(metrics) -> None:
    """In the middle of a line."""
    append = metrics.MetricsLog.append

    def holding(self, row):
        if f"metrics:{row['step']}" in HOLDS:
            size = self.path.stat().st_size if self.path.exists() else 0
            with self.path.open("a") as file:
                file.write('{"step": ' + str(row["step"]) + ', "vers')
            hold("metrics", row["step"])
            os.truncate(self.path, size)
        return append(self, row)

    metrics.MetricsLog.append = holding


def in_save(checkpoint) -> None:
    """Before the manifest of a draft, and after the draft has got its name."""
    write_manifest, prune = checkpoint._write_manifest, checkpoint._prune

    def holding(directory, step):
        hold("save", step)
        write_manifest(directory, step)

    def holding_again(root, keep):
        hold("saved", max(step for step, _ in checkpoint._steps(root)))
        prune(root, keep)

    checkpoint._write_manifest, checkpoint._prune = holding, holding_again


def in_evaluation(evaluator) -> None:
    """Before an evaluation; the final one is step 0."""
    run_once = evaluator.Evaluator.run_once

    async def holding(self, label, *args, **kwargs):
        if label == "final":
            hold("final", 0)
        return await run_once(self, label, *args, **kwargs)

    evaluator.Evaluator.run_once = holding


class Hiding(PathFinder):
    """The finder of ordinary files, but for one package: it looks as if it were not installed."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == os.environ["HIDE"] else PathFinder.find_spec(name, path, target)


HOOKS = {
    "rl.loop": in_rollout,
    "rewards.pool": in_reward,
    "rl.learner": in_learn,
    "rollout.client": in_push,
    "rollout.store": in_samples,
    "rl.metrics": in_metrics,
    "rl.checkpoint": in_save,
    "rl.evaluator": in_evaluation,
}
if HOLDS:
    for module, hook in HOOKS.items():
        after_import(module, hook)
if "HIDE" in os.environ:
    sys.meta_path[:] = [Hiding if finder is PathFinder else finder for finder in sys.meta_path]
