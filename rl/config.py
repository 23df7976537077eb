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

WORDS: dict[str, dict[str, str]] = yaml.safe_load(Path(__file__).with_name("config.yaml").read_text())


class Section(BaseModel):
    """Base of every section: unknown keys and silent conversions are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Fields get their descriptions, for docs/configuration.md."""
        for name, field in cls.model_fields.items():
            field.description = field.description or WORDS.get(cls.__name__, {}).get(name)


S = TypeVar("S", bound=Section)
REFUSED = "Exists to be refused: training needs the full distribution."


class RunConfig(Section):
    """Where the run is kept."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    dir: str = "runs"


class ObjectiveConfig(Section):
    """What is optimised. Null = the value of the preset named by `algorithm` (rl/presets.yaml)."""

    loss: str | None = None
    advantage: str | None = None
    aggregation: Literal["sequence_mean", "token_mean", "sequence_sum", "fixed_length", "prompt_mean"] | None = None
    clip_low: float | None = Field(None, gt=0, lt=1)
    clip_high: float | None = Field(None, gt=0)
    kl_weight: float | None = Field(None, ge=0)
    kl_place: Literal["loss", "reward"] | None = None
    kl_estimator: Literal["k1", "k2", "k3"] | None = None
    correction: Literal["none", "token", "token_mask", "sequence", "sequence_mask", "geometric"] | None = None
    no_variance: Literal["keep", "drop", "replace"] | None = None
    overlong: Literal["none", "soft", "filter"] | None = None
    retire_above: float | None = Field(None, gt=0, le=1)
    reference_reset: int | None = Field(None, ge=0)
    gamma: float | None = Field(None, gt=0, le=1)
    lam: float | None = Field(None, ge=0, le=1)


class LoraConfig(Section):
    """Low-rank adapters: only they are trained. No dropout."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    targets: Literal["all-linear"] | list[str] = "all-linear"
    push: Literal["auto", "adapter", "merged"] = "auto"


class ModelConfig(Section):
    """The policy."""

    path: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    lora: LoraConfig | None = None
    think: bool = True
    system_prompt: str | None = None


class RolloutConfig(Section):
    """What a step samples. `problems` x `group_size` = chains a step."""

    servers: list[str] = Field(default_factory=list)
    colocate: bool = False
    gpus: list[NonNegativeInt] = Field(default_factory=list, max_length=1)
    problems: int = Field(32, ge=1)
    group_size: int = Field(8, ge=1)
    temperature: float = Field(1.0, gt=0, le=2)
    max_tokens: int = Field(512, ge=1)
    top_p: float = Field(1.0, description=REFUSED)
    top_k: int = Field(0, description=REFUSED)
    min_p: float = Field(0.0, description=REFUSED)
    presence_penalty: float = Field(0.0, description=REFUSED)
    frequency_penalty: float = Field(0.0, description=REFUSED)
    repetition_penalty: float = Field(1.0, description=REFUSED)
    request_timeout: float = Field(600.0, gt=0)

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
    kv_cache_gb: float = Field(1.0, gt=0)
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    eager: bool = True
    fp32_head: bool = True
    threads: int | None = Field(None, ge=1)
    start_timeout: float = Field(600.0, gt=0)
    max_restarts: int = Field(3, ge=0)


class TrainConfig(Section):
    """The learner."""

    steps: int = Field(100, ge=1)
    learning_rate: float = Field(1e-5, ge=0)
    warmup_steps: int = Field(0, ge=0)
    decay: Literal["none", "linear", "cosine"] = "none"
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    epochs: int = Field(1, ge=1)
    minibatches: int = Field(1, ge=1)
    tokens_per_microbatch: int = Field(16384, ge=1)
    gradient_checkpointing: bool = False
    checkpoint_every: int = Field(10, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    sharding: Literal["none", "fsdp2"] = "none"
    threads: int | None = Field(None, ge=1)


class CriticConfig(Section):
    """The critic, where the objective needs one (ppo): a second model, begun from `model.path`, all of it trained."""

    learning_rate: float = Field(1e-5, ge=0)
    warmup_steps: int = Field(0, ge=0)
    clip: float = Field(0.2, gt=0)


class RewardsConfig(Section):
    """The worker pool that scores chains."""

    workers: int = Field(2, ge=1)
    time_limit: float = Field(1.0, gt=0)
    memory_gb: float = Field(1.0, gt=0)
    max_error_share: float = Field(0.05, ge=0, le=1)
    skip_bad_gold: bool = False
    audit_share: float = Field(0.05, ge=0, le=1)


class BudgetConfig(Section):
    """Thinking budgets in training."""

    think: int | None = Field(None, ge=0)
    answer: int = Field(64, ge=1)


class PipelineConfig(Section):
    """How rollout and learner interleave."""

    max_staleness: int = Field(0, ge=0, le=0)


class EvalConfig(Section):
    """Evaluation during the run, on the same server."""

    every: int = Field(0, ge=0)
    problems: int = Field(64, ge=1)
    test_problems: int | None = Field(None, ge=1)
    samples: int = Field(1, ge=1)
    budgets: list[int] = Field(default_factory=list)
    budgets_every: int = Field(0, ge=0)
    controls: bool = False


class SyncConfig(Section):
    """How new weights reach the server."""

    backend: Literal["file", "nccl"] = "file"
    dir: str = "/dev/shm"
    address: str = "127.0.0.1"
    timeout: float = Field(120.0, gt=0)
    bound: float | None = Field(None, gt=0)


class HardwareConfig(Section):
    """The machine that a run is meant for: `--dry-run` plans for it anywhere, and a start elsewhere is refused."""

    gpus: int | None = Field(None, ge=0)
    gpu_memory_gb: float | None = Field(None, gt=0)
    nodes: int | None = Field(None, ge=1)


class Config(Section):
    """A training run."""

    run: RunConfig = RunConfig()
    seed: int = Field(0, ge=0)
    algorithm: str = "grpo"
    objective: ObjectiveConfig = ObjectiveConfig()
    model: ModelConfig
    task: str | list[dict[str, Any]]
    reward: str | dict[str, Any] | None = None
    sampler: Literal["vllm", "transformers"] = "vllm"
    rollout: RolloutConfig = RolloutConfig()
    server: ServerConfig = ServerConfig()
    train: TrainConfig = TrainConfig()
    critic: CriticConfig = CriticConfig()
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
        if self.model.lora and self.model.lora.push == "adapter" and self.train.sharding != "none":
            raise ValueError("model.lora.push=adapter: sharded weights are pushed merged; leave it at auto")
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
