"""Bytes of a run, from a model's shapes alone: what learner and server hold, and on which device.

Pure arithmetic over what is known before anything starts. The larger terms are exact (parameters, optimizer, KV cache);
activations are what torch was seen to keep for the backward pass of a Llama layer, the rest is rounded up from sources.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from rewards.errors import BadInput
from rl.config import Config
from rl.presets import resolve_objective
from rollout.server.hardware import Hardware

GB = 1e9
GIB = 2**30
ITEM = {"float32": 4, "bfloat16": 2}
"""Bytes of a number."""

SHAPES = Path(__file__).parent.parent / "configs" / "models"
"""Directories with a config.json for models that are not on this machine."""

LOGIT_COPIES = 5  # of them: logits, divided by the temperature, log-softmax, and two for the entropy or the gradients
CUDA_CONTEXT = 0.6 * GB  # a process's own memory on a GPU before its first tensor
SERVER_TOKENS, SERVER_SEQUENCES = 8192, 256  # tokens in an engine step at most, sequences decoded together
RESERVE = 0.05  # share of a GPU that is left free: fragments of torch's allocator, the push of one tensor

TRAINED = "learner: trained parameters in fp32"
GRADIENTS = "learner: their gradients"
ADAMW = "learner: AdamW's two moments of each"
FROZEN = "learner: frozen parameters"
CASTS = "learner: copies of the parameters in bfloat16"
REFERENCE = "learner: reference for the KL"
ACTIVATIONS = "learner: activations of a micro-batch"
LOGITS = "learner: output head and logits in fp32"
CONTEXT = "learner: CUDA context"
SERVED = "server: weights"
WORK = "server: CUDA context, activations, logits"
KV_CACHE = "server: KV cache"
PUSHED = "weights on their way to the server"
SPARE = "left free"

REMEDIES = {
    ADAMW: "train adapters only (model.lora={rank: 16})",
    REFERENCE: "set objective.kl_weight=0 or model.lora",
    ACTIVATIONS: "lower train.tokens_per_microbatch or set train.gradient_checkpointing=true",
    KV_CACHE: "lower server.kv_cache_gb or rollout.max_tokens",
}
"""What to change where an item is the largest of those that don't fit; a smaller model, for those that are not here."""


@dataclass(frozen=True)
class Shapes:
    """What the formulas need to know about a model."""

    parameters: int  # a tied head counts once
    adapters: int  # parameters of LoRA's A and B; 0 without
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    head_norms: bool  # queries and keys are normalised (Qwen3)

    @classmethod
    def of(cls, config: Config) -> Shapes:
        """Of a configuration's model and adapters. Raises BadInput where the shapes are nowhere to be found."""
        from rl.model import adapted_layers, load_config

        path = str(shapes_path(config.model.path))
        c, model, lora = load_config(path).get_text_config(), _skeleton(path), config.model.lora
        targets = {} if lora is None else adapted_layers(model, lora)
        return cls(
            parameters=count_parameters(path),
            adapters=sum(lora.rank * (m.in_features + m.out_features) for m in targets.values()) if lora else 0,
            layers=c.num_hidden_layers,
            hidden=c.hidden_size,
            intermediate=c.intermediate_size,
            heads=c.num_attention_heads,
            kv_heads=c.num_key_value_heads,
            head_dim=getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads,
            vocab=c.vocab_size,
            head_norms=any(name.endswith("q_norm") for name, _ in model.named_modules()),
        )


@dataclass
class Place:
    """One device and what lies on it, in bytes."""

    name: str
    capacity: float  # math.inf where it is not known
    larger: str = ""  # the way to a larger one
    items: dict[str, float] = field(default_factory=dict)

    @property
    def needed(self) -> float:
        """Bytes of all items."""
        return sum(self.items.values())

    def check(self) -> None:
        """BadInput, naming the largest item and what to change, where the items don't fit."""
        if self.needed <= self.capacity:
            return
        item = max(self.items.keys() - {SPARE}, key=lambda name: (self.items[name], name))
        remedy = REMEDIES.get(item, "use a smaller model.path")
        raise BadInput(
            f"{self.name} has {self.capacity / GB:.1f} GB and {self.needed / GB:.1f} GB would lie there, most of it "
            f"{item}, {self.items[item] / GB:.1f} GB: {remedy}, or {self.larger}"
        )


@dataclass(frozen=True)
class Placement:
    """Who runs where. Without a GPU all lies in this machine's memory."""

    places: list[Place]
    server_gpus: tuple[int, ...] = ()  # indices into Hardware.gpus
    server_share: float | None = None  # of its GPU's memory, for --gpu-memory-utilization
    kv_tokens: int = 0  # that the server's cache holds

    def check(self) -> None:
        """BadInput where something doesn't fit."""
        for each in self.places:
            each.check()


def shapes_path(path: str) -> Path:
    """The directory whose config.json gives a model's shapes: itself, else configs/models/NAME for a hub name.

    What a name adds to the model's (-Instruct, -Base) changes no shape. Raises BadInput.
    """
    if Path(path).is_dir():
        return Path(path)
    name = Path(path).name
    for known in (name, name.removesuffix("-Instruct").removesuffix("-Base")):
        if (SHAPES / known / "config.json").is_file():
            return SHAPES / known
    raise BadInput(
        f"model.path={path} is no local directory, and configs/models/{name}/config.json, which would give its shapes, "
        "is not there; put the model's config.json there or name a local directory"
    )


@cache
def _skeleton(path: str) -> Any:
    """The model of a directory without any memory behind its parameters."""
    import torch
    from transformers import AutoModelForCausalLM

    from rl.model import load_config

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(load_config(path))


def count_parameters(path: str) -> int:
    """Parameters of a model directory, from its config alone; a tied head counts once."""
    return sum(math.prod(p.shape) for p in _skeleton(path).parameters())


def kv_bytes_per_token(shapes: Shapes, dtype: str) -> int:
    """Keys and values of one token in all layers: 2 x layers x KV heads x head size numbers."""
    return 2 * shapes.layers * shapes.kv_heads * shapes.head_dim * ITEM[dtype]


def activation_bytes(shapes: Shapes, tokens: int, dtype: str, *, lora: bool, checkpointing: bool) -> float:
    """What a micro-batch's forward pass keeps for its backward pass, and one layer's worth to work with.

    A layer keeps for each token, with b bytes a number: the gate, up, activated and multiplied MLP vectors (4 b I),
    query, its rotation and attention's output (3 b Q), key and value (2 b KV), and 24 (fp32) or 26 bytes of the hidden
    vector for the two norms, their inputs and the residual stream in fp32; 8 less under LoRA, whose norms are frozen.
    With checkpointing only each layer's input is kept, and one layer is recomputed at a time.
    """
    b = ITEM[dtype]
    query, key = shapes.heads * shapes.head_dim, shapes.kv_heads * shapes.head_dim
    norms = 8 * (query + key) if shapes.head_norms else 0
    stream = (24 if b == 4 else 26) - (8 if lora else 0)
    layer = stream * shapes.hidden + 4 * b * shapes.intermediate + 3 * b * query + 2 * b * key + norms
    kept = (b if lora else 4) * shapes.hidden if checkpointing else layer
    return float(tokens * (shapes.layers * kept + (2 if checkpointing else 1) * layer))


def logits_bytes(shapes: Shapes, tokens: int) -> float:
    """The chunk of logits that exists at once, with its copies, and the head's weights in fp32."""
    from rl.logprobs import CHUNK_ELEMENTS

    chunk = min(tokens * shapes.vocab, max(CHUNK_ELEMENTS, shapes.vocab))
    return 4.0 * (LOGIT_COPIES * chunk + shapes.vocab * shapes.hidden)


def microbatch_tokens(config: Config, context: int) -> int:
    """Tokens of the largest micro-batch: as many as are allowed and there are, and at least one whole chain."""
    rollout = config.rollout
    return max(context, min(config.train.tokens_per_microbatch, rollout.problems * rollout.group_size * context))


def learner_bytes(shapes: Shapes, config: Config, context: int) -> dict[str, float]:
    """What the learner holds at its largest, by item."""
    train, dtype, lora = config.train, config.model.dtype, config.model.lora is not None
    reference = resolve_objective(config.algorithm, config.objective).needs_reference and not lora
    tokens, n = microbatch_tokens(config, context), shapes.parameters
    trained = shapes.adapters if lora else n
    return {
        TRAINED: 4.0 * trained,
        GRADIENTS: 4.0 * trained,
        ADAMW: 8.0 * trained,
        FROZEN: float(ITEM[dtype] * n if lora else 0),
        CASTS: 2.0 * n if dtype == "bfloat16" and not lora else 0.0,
        REFERENCE: 4.0 * n if reference else 0.0,
        ACTIVATIONS: activation_bytes(shapes, tokens, dtype, lora=lora, checkpointing=train.gradient_checkpointing),
        LOGITS: logits_bytes(shapes, tokens),
    }


def server_work_bytes(shapes: Shapes, dtype: str) -> float:
    """What vLLM needs on a GPU beside weights and cache: an engine step's activations, its logits, its context."""
    step = SERVER_TOKENS * ITEM[dtype] * (3 * shapes.intermediate + 4 * shapes.hidden)
    return CUDA_CONTEXT + step + 3.0 * 4 * SERVER_SEQUENCES * shapes.vocab


def place(config: Config, hardware: Hardware, context: int) -> Placement:
    """Who runs where, whether or not it fits. `context`: tokens of the longest chain.

    Raises BadInput where the model's shapes are unknown, or a GPU is asked for that isn't there.
    """
    shapes = Shapes.of(config)
    return (_on_gpus if hardware.gpus else _in_memory)(config, shapes, hardware, context)


def _in_memory(config: Config, shapes: Shapes, hardware: Hardware, context: int) -> Placement:
    held = ITEM[config.model.dtype] * shapes.parameters
    served = config.sampler == "vllm" and not config.rollout.servers
    cache_bytes = config.server.kv_cache_gb * GIB if served else 0.0
    items = learner_bytes(shapes, config, context) | {
        SERVED if served else "sampler: weights": 0.0 if config.rollout.servers else float(held),
        PUSHED: float(held) if config.sampler == "vllm" else 0.0,
        KV_CACHE: cache_bytes,
    }
    machine = Place("this machine's memory", hardware.memory_gb * GIB, "a larger machine", items)
    return Placement(
        [machine], serving_gpus(config, 0), kv_tokens=int(cache_bytes // kv_bytes_per_token(shapes, config.model.dtype))
    )


def _on_gpus(config: Config, shapes: Shapes, hardware: Hardware, context: int) -> Placement:
    served = config.sampler == "vllm" and not config.rollout.servers
    serving = serving_gpus(config, len(hardware.gpus)) if served else ()
    larger = "a larger GPU (hardware.gpu_memory_gb)"
    places = [Place(f"GPU {i}", gpu.memory_gb * GIB, larger) for i, gpu in enumerate(hardware.gpus)]
    places[0].items |= learner_bytes(shapes, config, context) | {CONTEXT: CUDA_CONTEXT}
    share, tokens = None, 0
    if serving:
        share, tokens = _add_server(places[serving[0]], config, shapes, context)
    if config.sampler == "vllm":
        pushed = float(ITEM[config.model.dtype] * shapes.parameters)
        places.append(Place(f"host memory, {config.sync.dir}", math.inf, items={PUSHED: pushed}))
    return Placement(places, serving, share, tokens)


def _add_server(gpu: Place, config: Config, shapes: Shapes, context: int) -> tuple[float, int]:
    """Put the server on a GPU; its share of the memory, and the tokens that its cache holds.

    With a learner there it gets what the learner leaves, less a reserve. A chain of full length must fit its cache.
    """
    dtype, colocate = config.model.dtype, config.rollout.colocate
    own = {SERVED: float(ITEM[dtype] * shapes.parameters), WORK: server_work_bytes(shapes, dtype)}
    rest = 1 - RESERVE - gpu.needed / gpu.capacity
    share = max(0, math.floor(100 * rest)) / 100 if colocate else config.server.gpu_memory_utilization
    room, token = share * gpu.capacity - sum(own.values()), kv_bytes_per_token(shapes, dtype)
    gpu.items |= own | {KV_CACHE: max(room, float(token * context))}
    if colocate:
        gpu.items[SPARE] = max(gpu.capacity * RESERVE, gpu.capacity - gpu.needed)
    return share, int(max(0.0, room) // token)


def serving_gpus(config: Config, count: int) -> tuple[int, ...]:
    """Indices of the GPUs that serve: the learner's own (0) with rollout.colocate, else rollout.gpus (default [1]).

    Of none, none. Raises BadInput where there are too few.
    """
    rollout = config.rollout
    if count == 0 and not rollout.gpus:
        return ()
    if rollout.colocate:
        return (0,)
    wanted = tuple(rollout.gpus or [1])
    if count == 1:
        raise BadInput("one GPU for server and learner: set rollout.colocate=true, so that they share it")
    if wanted == (0,):
        raise BadInput("rollout.gpus=[0]: the learner runs on GPU 0; name another, or set rollout.colocate=true")
    if wanted[0] >= count:
        raise BadInput(f"rollout.gpus={list(wanted)}: there are {count} GPUs, numbered from 0")
    return wanted
