"""The configuration: strict, frozen, nested; YAML plus dotted overrides. Every field is read somewhere.
A wrong key or value is refused at parse time with one line that names it and the fix."""

import difflib
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator

from rewards.errors import BadInput, one_line


class Section(BaseModel):
    """Base of every section: unknown keys and silent conversions are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


S = TypeVar("S", bound=Section)
REFUSED = "Exists to be refused: training needs the full distribution."


class RunConfig(Section):
    """Where the run is kept."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    """Directory name of the run below `run.dir`."""
    dir: str = "runs"
    """Directory that holds runs."""


class ObjectiveConfig(Section):
    """What is optimised. Null = the value of the preset named by `algorithm`."""

    loss: Literal["clip"] | None = None
    """Policy loss: `clip` (token ratio, PPO clip with separate bounds)."""
    advantage: Literal["group_norm"] | None = None
    """Advantage estimator: `group_norm` ((reward - group mean) / (group std + 1e-4))."""
    aggregation: Literal["sequence_mean", "token_mean"] | None = None
    """How token losses become one number: mean over sequences of token means, or mean over all tokens."""
    clip_low: float | None = Field(None, gt=0, lt=1)
    """Ratio clip below 1 (1 - clip_low)."""
    clip_high: float | None = Field(None, gt=0)
    """Ratio clip above 1 (1 + clip_high)."""
    kl_weight: float | None = Field(None, ge=0)
    """Weight of the k3 KL to the reference in the loss; at 0 no reference is loaded."""
    correction: Literal["none", "token"] | None = None
    """Weight for the sampler/learner mismatch: `token` multiplies by min(old/sampler, 2), detached."""


class LoraConfig(Section):
    """Low-rank adapters: only they are trained. No dropout."""

    rank: int = Field(16, ge=1)
    """Rank r of the product B A that is added to a layer's weight."""
    alpha: float = Field(32.0, gt=0)
    """The product is scaled by alpha / rank."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """Layers that get an adapter, by the ends of their names ([q_proj, v_proj]); all-linear = all but the head."""
    push: Literal["auto", "adapter", "merged"] = "auto"
    """What goes to the server: the `adapter` alone, or the model with it `merged`; auto = adapter where GPUs serve."""


class ModelConfig(Section):
    """The policy."""

    path: str
    """Model directory (config, tokenizer, safetensors). Without weights the policy is random from `seed`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute and serving dtype. On a CPU always float32 (bf16 can be 300 times slower)."""
    lora: LoraConfig | None = None
    """Train low-rank adapters only (model.lora.rank=16 …); null = all weights."""
    think: bool = True
    """Whether chains think before they answer: tags come from the tokenizer, else `<think>`, `</think>`."""
    system_prompt: str | None = None
    """System message put before every chat prompt; null = none."""


class RolloutConfig(Section):
    """What a step samples. `problems` x `group_size` = chains a step."""

    servers: list[str] = Field(default_factory=list)
    """URLs of vLLM servers that run elsewhere (key in PONDER_API_KEY); empty = start one here."""
    colocate: bool = False
    """Server and learner share GPU 0; the server gets the memory that the learner leaves by the plan (--dry-run)."""
    gpus: list[NonNegativeInt] = Field(default_factory=list, max_length=1)
    """Which GPU serves (one so far), numbered as CUDA_VISIBLE_DEVICES leaves them; the learner has 0; empty = 1."""
    problems: int = Field(32, ge=1)
    """Problems a step."""
    group_size: int = Field(8, ge=1)
    """Chains a problem."""
    temperature: float = Field(1.0, gt=0, le=2)
    """Sampling temperature (vLLM takes at most 2); the learner divides its logits by the same number."""
    max_tokens: int = Field(512, ge=1)
    """Tokens a chain may have after the prompt, thinking and answer together."""
    top_p: float = Field(1.0, description=REFUSED)
    top_k: int = Field(0, description=REFUSED)
    min_p: float = Field(0.0, description=REFUSED)
    presence_penalty: float = Field(0.0, description=REFUSED)
    frequency_penalty: float = Field(0.0, description=REFUSED)
    repetition_penalty: float = Field(1.0, description=REFUSED)
    request_timeout: float = Field(600.0, gt=0)
    """Deadline of one sampling request, seconds."""

    @model_validator(mode="after")
    def _full_distribution(self) -> Self:
        for name, field in RolloutConfig.model_fields.items():
            value, neutral = getattr(self, name), field.default
            if field.description == REFUSED and value != neutral:
                raise ValueError(f"rollout.{name}={value} is not what the learner trains; leave it at {neutral}")
        return self


class ServerConfig(Section):
    """The vLLM server that Ponder starts."""

    port: int | None = Field(None, ge=1, le=65535)
    """Port on 127.0.0.1; null = a free one."""
    kv_cache_gb: float = Field(1.0, gt=0)
    """Memory for the KV cache on a CPU, GiB."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of the GPU's memory that the server may take; with rollout.colocate the plan sets it."""
    eager: bool = True
    """Skip torch.compile: starts a minute sooner, a little slower on large models."""
    threads: int | None = Field(None, ge=1)
    """Threads of the server on a CPU; null = all cores."""
    start_timeout: float = Field(600.0, gt=0)
    """Seconds the server may take to become healthy."""
    max_restarts: int = Field(3, ge=0)
    """Times a dead server is started again before the run stops (exit 3)."""


class TrainConfig(Section):
    """The learner."""

    steps: int = Field(100, ge=1)
    """Steps of the run; a step is one batch of rollouts."""
    learning_rate: float = Field(1e-5, ge=0)
    """Peak learning rate of AdamW."""
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps of linear warm-up."""
    decay: Literal["none", "linear", "cosine"] = "none"
    """Decay of the learning rate after the warm-up, down to zero at the last optimizer step."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    epochs: int = Field(1, ge=1)
    """Passes over a step's chains."""
    minibatches: int = Field(1, ge=1)
    """Optimizer steps a pass; the chains are divided by groups, nothing has to divide anything."""
    tokens_per_microbatch: int = Field(16384, ge=1)
    """Tokens in one forward pass: memory only, it never changes the result."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    checkpoint_every: int = Field(10, ge=1)
    """Steps between checkpoints; the last step always writes one."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints that are kept."""
    threads: int | None = Field(None, ge=1)
    """Threads of the learner on a CPU; null = all cores."""


class RewardsConfig(Section):
    """The worker pool that scores chains."""

    workers: int = Field(2, ge=1)
    """Worker processes."""
    time_limit: float = Field(1.0, gt=0)
    """Seconds an item may take before its worker is killed."""
    memory_gb: float = Field(1.0, gt=0)
    """Address space a worker may add to what the loaded reward takes, GiB."""
    max_error_share: float = Field(0.05, ge=0, le=1)
    """Share of a step's chains with status `error` or `rejected` above which the run stops (exit 3)."""
    skip_bad_gold: bool = False
    """Score the gold answer of every row of a file before the run, and go on without those that are not correct."""
    audit_share: float = Field(0.05, ge=0, le=1)
    """Share of the answers judged wrong that a second verifier hears (math, numeric, exact_match); 0 = no audit."""


class BudgetConfig(Section):
    """Thinking budgets in training."""

    think: int | None = Field(None, ge=0)
    """Sampled thinking tokens before the close is forced; null = no cap but rollout.max_tokens."""
    answer: int = Field(64, ge=1)
    """Tokens for the answer after a forced close."""


class PipelineConfig(Section):
    """How rollout and learner interleave."""

    max_staleness: int = Field(0, ge=0, le=0)
    """Capacity of the queue between them; 0 = synchronous, the only mode so far."""


class EvalConfig(Section):
    """Evaluation during the run, on the same server."""

    every: int = Field(0, ge=0)
    """Steps between evaluations on val, from step 0 to the last; 0 = none. Above, base and final come on test, too."""
    problems: int = Field(64, ge=1)
    """Problems an evaluation."""
    test_problems: int | None = Field(None, ge=1)
    """Problems of the two evaluations on test; null = eval.problems."""
    samples: int = Field(1, ge=1)
    """Samples a problem."""
    budgets: list[int] = Field(default_factory=list)
    """Thinking caps to evaluate the base and the final policy at; empty = no cap."""
    budgets_every: int = Field(0, ge=0)
    """Steps between evaluations on test at these caps, besides base and final; 0 = none."""
    controls: bool = False
    """Also measure the base with patience forced on it and with many votes: what a gain beyond that owes to RL."""


class SyncConfig(Section):
    """How new weights reach the server."""

    backend: Literal["file", "nccl"] = "file"
    """`file`: a safetensors file in a directory that both sides see; `nccl`: from GPU to GPU."""
    dir: str = "/dev/shm"
    """Directory of that file; needs the weights' size in free space."""
    address: str = "127.0.0.1"
    """This machine's address, at which the servers find the learner (`nccl`)."""
    timeout: float = Field(120.0, gt=0)
    """Seconds that each call of a push may take, and over NCCL each meeting of both sides."""
    bound: float | None = Field(None, gt=0)
    """Bound of `mismatch_kl/fresh`: warns above it, stops above 10 times it. Null = by dtype (1e-6, bf16 1e-3)."""


class HardwareConfig(Section):
    """The machine that a run is meant for: `--dry-run` plans for it anywhere, and a start elsewhere is refused."""

    gpus: int | None = Field(None, ge=0)
    """NVIDIA GPUs of the machine; null = those that are here."""
    gpu_memory_gb: float | None = Field(None, gt=0)
    """Memory of each, GiB (as on the box: 24); null = what is here."""
    nodes: int | None = Field(None, ge=1)
    """Machines; null = 1. More are refused: learner and server start on one, other servers with `ponder serve`."""


class Config(Section):
    """A training run."""

    run: RunConfig = RunConfig()
    seed: int = Field(0, ge=0)
    """Seed of the run: weights that are not loaded, problems, sampling."""
    algorithm: Literal["grpo"] = "grpo"
    """Preset of the objective."""
    objective: ObjectiveConfig = ObjectiveConfig()
    model: ModelConfig
    task: str | list[dict[str, Any]]
    """Task string (`NAME`, `NAME?numbers=3`, `path.jsonl`) or a mixture [{task, weight}, …]."""
    reward: str | dict[str, Any] | None = None
    """Reward: null = the task's own, `name`, `module:function`, `path.py:function`, {use: …, args: {…}}."""
    sampler: Literal["vllm", "transformers"] = "vllm"
    """What generates chains."""
    rollout: RolloutConfig = RolloutConfig()
    server: ServerConfig = ServerConfig()
    train: TrainConfig = TrainConfig()
    rewards: RewardsConfig = RewardsConfig()
    budget: BudgetConfig = BudgetConfig()
    pipeline: PipelineConfig = PipelineConfig()
    eval: EvalConfig = EvalConfig()
    sync: SyncConfig = SyncConfig()
    hardware: HardwareConfig = HardwareConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        rollout, budget, nodes, minibatches = self.rollout, self.budget, self.hardware.nodes, self.train.minibatches
        elsewhere = rollout.servers or self.sampler != "vllm"
        if rollout.group_size < 2:
            raise ValueError(f"rollout.group_size={rollout.group_size}: chains of a group are compared; use 2 or more")
        if budget.think is not None and budget.answer >= rollout.max_tokens:
            raise ValueError(f"budget.answer={budget.answer} fills rollout.max_tokens={rollout.max_tokens}; lower it")
        if (rollout.colocate and (rollout.gpus or elsewhere)) or (rollout.gpus and elsewhere):
            what = "rollout.colocate and rollout.gpus say where the vLLM server that is started here runs"
            raise ValueError(f"{what}: give one of them, and neither beside rollout.servers or sampler=transformers")
        if minibatches > rollout.problems:
            raise ValueError(f"train.minibatches={minibatches} is more than rollout.problems={rollout.problems}")
        if self.sync.backend == "nccl" and (rollout.colocate or self.sampler != "vllm"):
            raise ValueError("sync.backend=nccl wants vLLM on a GPU of its own: no rollout.colocate, sampler=vllm")
        far = [url for url in rollout.servers if "//127.0.0.1:" not in url and "//localhost:" not in url]
        if self.sync.backend == "nccl" and far and self.sync.address == "127.0.0.1":
            raise ValueError(f"rollout.servers={far} can't reach sync.address=127.0.0.1; give this machine's address")
        if nodes not in (None, 1):
            raise ValueError(f"hardware.nodes={nodes}: one machine so far; name servers elsewhere in rollout.servers")
        return self

    @property
    def run_dir(self) -> Path:
        return Path(self.run.dir) / self.run.name

    @property
    def mismatch_bound(self) -> float:
        """Bound of mismatch_kl/fresh in nats (k3): given, else by dtype."""
        return self.sync.bound or {"float32": 1e-6, "bfloat16": 1e-3}[self.model.dtype]


def load_section(kind: type[S], path: str | Path, overrides: Sequence[str] = ()) -> S:
    """A YAML file with `key.sub=value` overrides applied, or BadInput with the first problem in one line."""
    return parse_section(kind, _override(read_yaml(Path(path)), overrides), str(path))


load_config = partial(load_section, Config)


def override_config(config: Config, overrides: Sequence[str]) -> Config:
    """`config` with `key.sub=value` overrides on top, checked again."""
    return parse_config(_override(config.model_dump(), overrides), "override")


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-5 as a number: YAML 1.1 asks for a dot and would give a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping, or BadInput."""
    try:
        data = yaml.load(path.read_text(), Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{path} is no readable YAML: {one_line(str(error))}") from None
    if not isinstance(data, dict):
        raise BadInput(f"{path} must hold a mapping of keys to values, not {type(data).__name__}")
    return data


def parse_section(kind: type[S], data: dict[str, Any], source: str = "config") -> S:
    """Plain data checked as one kind of configuration, or BadInput with the first problem in one line."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
    where, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        inside = first["input"]
        while isinstance(inside, dict) and len(inside) == 1:  # a section that isn't there: name the key that was meant
            ((key, inside),) = inside.items()
            where = f"{where}.{key}"
        known, leaf = [key for key, _ in walk_fields(kind)], where.rpartition(".")[2]
        moved = [key for key in known if key.rpartition(".")[2] == leaf]  # a right name in a wrong section
        near = moved or difflib.get_close_matches(where, [*known, *kind.model_fields], n=1)
        message = f"unknown key {where!r}; " + (f"did you mean {near[0]!r}?" if near else "see `ponder config docs`")
    elif first["type"] == "missing":
        message = f"{where} is required"
    elif first["type"] != "value_error":
        message = f"{where}={first['input']!r}: {message[0].lower()}{message[1:]}"
    raise BadInput(f"{source}: {message}")


parse_config = partial(parse_section, Config)


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML: `--print-config` and runs/NAME/config.yaml."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)


def _override(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for item in overrides:
        key, sign, text = item.partition("=")
        if not sign or not key:
            raise BadInput(f"override {item!r} is not of the form key.sub=value")
        *path, last = key.split(".")
        section = data
        for name in path:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise BadInput(f"override {item!r}: {name} holds a value, not a section")
        try:
            section[last] = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError:
            raise BadInput(f"override {item!r}: the value is not YAML; quote it") from None
    return data


def walk_fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each field as (dotted key, pydantic FieldInfo), in the order written; of sections those that may be null, too."""
    for name, info in model.model_fields.items():
        kind = section_of(info.annotation)
        if kind is not info.annotation:
            yield prefix + name, info
        if kind is not None:
            yield from walk_fields(kind, f"{prefix}{name}.")


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, also where it may be null; None for a plain value."""
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
