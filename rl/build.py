"""From a configuration to the parts of a run: first what is cheap, so that bad input is refused at once."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.errors import BadInput
from rewards.tasks import Task, load_task
from rewards.tasks.base import SPLITS
from rewards.types import Problem, Split
from rl.config import Config
from rl.curriculum import Curriculum
from rl.memory import shapes_path
from rl.presets import Objective, objective_of
from rollout.collect import Plan, make_questions
from rollout.prompt import Template, read_json
from rollout.server.hardware import Hardware, check_stated, probe
from rollout.server.process import served_hardware

if TYPE_CHECKING:  # torch and transformers load when the learner is built
    from rl.learner import Learner
    from rl.parallel import Ranks

PROBLEMS_SCANNED = 2000  # prompts that are tokenized before the run to find the longest


@dataclass(frozen=True)
class Setup:
    """Everything that is known before something heavy starts."""

    config: Config
    task: Task
    template: Template
    context: int  # tokens of the longest prompt + rollout.max_tokens: the server's --max-model-len
    hardware: Hardware
    fingerprint: str  # what a resumed run must find unchanged
    objective: Objective
    ranks: int = 1  # of the learner

    def problems(self, step: int) -> list[Problem]:
        """The training problems of one step (from 1) where none is replaced or retired (rl/curriculum.py)."""
        return Curriculum((step - 1) * self.config.rollout.problems).draw(self.task, self.config.rollout.problems)[0]

    def eval_problems(self, split: Split) -> list[Problem]:
        """The first `eval.problems` (on test `eval.test_problems`) of a split, or all where it has fewer."""
        size, config = self.task.size(split), self.config.eval
        count = config.test_problems or config.problems if split == "test" else config.problems
        return [self.task.problem(i, split) for i in range(count if size is None else min(size, count))]

    def spec_of(self, problem: Problem) -> Any:
        """The reward that scores a problem: the configuration's, else the row's own, else the task's."""
        return problem.reward or self.task.reward if self.config.reward is None else self.config.reward

    @property
    def plan(self) -> Plan:
        rollout, budget = self.config.rollout, self.config.budget
        sizes = (rollout.max_tokens, budget.answer, self.config.seed)
        room = rollout.max_tokens - budget.answer
        close = self.objective.force_close and self.config.model.think and room > 0
        think = room if close and budget.think is None else budget.think
        return Plan(rollout.group_size, rollout.temperature, (think,), *sizes)


def prepare(config: Config) -> Setup:
    """Check hardware, model directory, tokenizer, task and prompt lengths, for a start. Raises BadInput."""
    hardware, path = served_hardware(probe()), config.model.path
    check_stated(hardware, config.hardware.gpus, config.hardware.gpu_memory_gb)
    if not Path(path).is_dir():
        raise BadInput(f"model.path={path}: no such directory; give a local one (a hub's name is for --dry-run alone)")
    template = Template.load(path, think=config.model.think, system_prompt=config.model.system_prompt)
    return examine(config, hardware, template)


def examine(config: Config, hardware: Hardware, template: Template) -> Setup:
    """Check task and prompt lengths against the model's context. Raises BadInput."""
    if config.sync.backend == "nccl" and not hardware.gpus:
        raise BadInput("sync.backend=nccl needs CUDA, and there is no GPU that can be used here; use sync.backend=file")
    task = load_task(config.task, seed=config.seed)
    size = task.size("train")  # of a file as much is remembered as is looked at here, of a generator its beginning
    known = [task.problem(i, "train") for i in range(16 if size is None else min(size, PROBLEMS_SCANNED))]
    first = [(problem.key, problem.prompt, problem.answer) for problem in known], [task.size(split) for split in SPLITS]
    objective = objective_of(config)
    fingerprint = hashlib.sha256(repr(first).encode()).hexdigest()[:16]
    setup = Setup(config, task, template, 0, hardware, fingerprint, objective)
    count = min(PROBLEMS_SCANNED, config.train.steps * config.rollout.problems)
    problems = [task.problem(i, "train") for i in range(count)]
    for split in SPLITS[1:] if config.eval.every > 0 else ():
        if not (found := setup.eval_problems(split)):
            raise BadInput(f"task {task.name} has no {split} problems; add rows with that split, or set eval.every=0")
        problems += found
    longest = max(len(question.prompt_ids) for question in make_questions(problems, template, "cot"))
    closing = len(template.close_ids) if config.model.think else 0  # a forced close is inserted on top
    longest += 8 * (count == PROBLEMS_SCANNED)  # room for what was not scanned
    context = longest + config.rollout.max_tokens + closing
    limit = model_context(str(shapes_path(config.model.path)))
    if context > limit:
        raise BadInput(
            f"the longest prompt and rollout.max_tokens={config.rollout.max_tokens} need {context} tokens, "
            f"{config.model.path} has a context of {limit}; lower rollout.max_tokens"
        )
    return replace(setup, context=context)


def model_context(path: str) -> int:
    """Positions that a model directory was made for. Raises BadInput where it is none."""
    limit = read_json(Path(path) / "config.json").get("max_position_embeddings")
    if not isinstance(limit, int):
        raise BadInput(f"{path}/config.json is missing or names no max_position_embeddings; is it a model directory?")
    return limit


def build_learner(config: Config, checkpoint: str | None = None, ranks: "Ranks | None" = None) -> "Learner":
    """Load the policy (of a checkpoint where one is given) and, where the objective needs it, the reference."""
    from rl.learner import Learner
    from rl.model import add_adapter, load_policy, twin
    from rl.parallel import ONE

    model, seed, reference = config.model, config.seed, None
    objective = objective_of(config)
    composed = config.reward if isinstance(config.reward, dict) and config.reward["use"] == "weighted" else {}
    parts = composed.get("args", {}).get("parts", {})  # checked when the reward was loaded
    if model.lora is None:  # fp32 whatever is computed and served in: bf16 weights lose small updates
        policy, _ = load_policy(checkpoint or model.path, "float32", seed)
        if objective.needs_reference:
            reference, _ = load_policy(model.path, "float32", seed)
    else:  # the base is frozen, hence held as it is served, and without its adapter it is the reference
        policy, _ = load_policy(model.path, model.dtype, seed)
        reference = twin(policy) if objective.needs_reference else None
        add_adapter(policy, model.lora, seed, model.path, checkpoint)
    critic = (load_policy(model.path, "float32", seed)[0], config.critic) if objective.needs_critic else None
    return Learner(
        policy, objective, config.train, temperature=config.rollout.temperature, total_steps=config.train.steps,
        max_tokens=config.rollout.max_tokens, reference=reference, critic=critic, dtype=model.dtype, ranks=ranks or ONE,
        part_weights=[(name, float(part.get("weight", 1.0))) for name, part in parts.items()],
    )  # fmt: skip
