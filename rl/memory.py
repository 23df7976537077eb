"""Bytes of a run, from a model's shapes alone: what learner and server hold, and on which device. Parameters, optimizer
and KV cache are exact, activations what torch was seen to keep for a Llama layer, the rest rounded up from sources."""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

from rewards.errors import BadInput
from rl.config import Config, LoraConfig
from rl.presets import objective_of
from rollout.server.hardware import Hardware

GB, GIB = 1e9, 2**30
ITEM = {"float32": 4, "bfloat16": 2}  # bytes of a number
CUDA_CONTEXT = 0.6 * GB  # a process's own memory on a GPU before its first tensor
NCCL_CHUNK = 2**28  # a packed broadcast has this many bytes and the rest of its last tensor
RESERVE = 0.05  # share of a GPU that is left free: fragments of torch's allocator, the push of one tensor

ADAMW = "learner: AdamW's two moments of each"
REFERENCE = "learner: reference for the KL"
CRITIC = "learner: critic, its gradients and moments"
ACTIVATIONS = "learner: activations of a micro-batch"
SERVED = "server: weights"
KV_CACHE = "server: KV cache"
PUSHED = "weights on their way to the server"
SPARE = "left free"
REMEDIES = {  # what to change where an item is the largest of those that don't fit; a smaller model for all others
    ADAMW: "train adapters only (model.lora={rank: 16})",
    REFERENCE: "set objective.kl_weight=0 or model.lora",
    CRITIC: "choose an algorithm without a critic (algorithm=grpo)",
    ACTIVATIONS: "lower train.tokens_per_microbatch or set train.gradient_checkpointing=true",
    KV_CACHE: "lower server.kv_cache_gb or rollout.max_tokens",
}


@dataclass(frozen=True)
class Shapes:
    config: Any  # transformers' own, of the text model, with a head_dim
    parameters: int  # a tied head counts once
    adapters: int = 0  # parameters of LoRA's A and B
    head_norms: bool = False  # queries and keys are normalised (Qwen3)

    @classmethod
    def of(cls, config: Config) -> Self:
        """Of a configuration's model and adapters. Raises BadInput where the shapes are nowhere to be found."""
        from rl.model import adapted_layers

        path, lora = str(shapes_path(config.model.path)), config.model.lora
        model = _skeleton(path)
        adapted = adapted_layers(model, lora).values() if lora else ()
        return cls(
            config=model.config.get_text_config(),
            parameters=count_parameters(path),
            adapters=sum(lora.rank * (m.in_features + m.out_features) for m in adapted) if lora else 0,
            head_norms=any(name.endswith("q_norm") for name, _ in model.named_modules()),
        )


@dataclass
class Place:
    """One device and what lies on it, in bytes; its capacity is infinite where it is not known."""

    name: str
    capacity: float
    items: dict[str, float]

    @property
    def needed(self) -> float:
        return sum(self.items.values())


@dataclass(frozen=True)
class Placement:
    places: list[Place]
    server_gpus: tuple[int, ...] = ()  # indices into Hardware.gpus
    server_share: float | None = None  # of its GPU's memory, for --gpu-memory-utilization
    kv_tokens: int = 0  # that the server's cache holds

    def check(self) -> None:
        """BadInput, naming the largest item and what to change, where something doesn't fit."""
        for place in self.places:
            if place.needed > place.capacity:
                size, item = max((size, item) for item, size in place.items.items() if item != SPARE)
                room = f"{place.name} has {place.capacity / GB:.1f} GB and {place.needed / GB:.1f} GB would lie there"
                fix = REMEDIES.get(item, "use a smaller model.path")
                raise BadInput(f"{room}, most of it {item}, {size / GB:.1f} GB: {fix}")


def shapes_path(path: str) -> Path:
    """The directory whose config.json gives a model's shapes: itself, else configs/models/NAME. Raises BadInput."""
    name, known = Path(path).name, Path(__file__).parent.parent / "configs" / "models"
    # what a name adds to the model's changes no shape
    for directory in (Path(path), known / name, known / name.removesuffix("-Instruct").removesuffix("-Base")):
        if directory.is_dir():
            return directory
    missing = f"no such directory, and no configs/models/{name}/config.json with its shapes"
    raise BadInput(f"model.path={path}: {missing}; add that file")


@cache
def _skeleton(path: str) -> Any:
    """The model of a directory without any memory behind its parameters."""
    import torch
    from transformers import AutoModelForCausalLM

    from rl.model import load_config

    config = load_config(path)
    text = config.get_text_config()
    text.head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def count_parameters(path: str) -> int:
    """Parameters of a model directory, from its config alone; a tied head counts once."""
    return sum(p.numel() for p in _skeleton(path).parameters())


def kv_bytes_per_token(shapes: Shapes, dtype: str) -> int:
    """Keys and values of one token in all layers."""
    c = shapes.config
    return 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * ITEM[dtype]


def activation_bytes(shapes: Shapes, tokens: int, dtype: str, *, lora: bool, checkpointing: bool) -> float:
    """What a micro-batch's forward pass keeps for its backward pass, and one layer's worth to work with.
    A layer keeps for each token, with b bytes a number: four MLP vectors (4 b I), query, its rotation and attention's
    output (3 b Q), key and value (2 b KV), and of the hidden vector 24 (fp32) or 26 bytes for norms and residual
    stream, 8 less under LoRA, whose norms are frozen. With checkpointing only each layer's input is kept."""
    b, c = ITEM[dtype], shapes.config
    query, key = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    norms = 8 * (query + key) if shapes.head_norms else 0
    stream = (24 if b == 4 else 26) - (8 if lora else 0)
    layer = stream * c.hidden_size + 4 * b * c.intermediate_size + 3 * b * query + 2 * b * key + norms
    kept = (b if lora else 4) * c.hidden_size if checkpointing else layer
    return float(tokens * (c.num_hidden_layers * kept + (2 if checkpointing else 1) * layer))


def logits_bytes(shapes: Shapes, tokens: int) -> float:
    """The chunk of logits and of probabilities that exists at once, those kept for the backward pass, and the head's
    weights in fp32 with their gradient."""
    from rl.logprobs import CHUNK_ELEMENTS, KEPT_ELEMENTS

    vocab = shapes.config.vocab_size
    everything = tokens * vocab
    kept = everything if everything <= KEPT_ELEMENTS else 0
    chunk = min(everything, max(CHUNK_ELEMENTS, vocab))
    return 4.0 * (2 * chunk + kept + 2 * vocab * shapes.config.hidden_size)


def learner_bytes(shapes: Shapes, config: Config, context: int, ranks: int = 1) -> dict[str, float]:
    """What a rank of the learner holds at its largest, by item. `context`: tokens of the longest chain."""
    rollout, train, dtype = config.rollout, config.train, config.model.dtype
    lora, n = config.model.lora is not None, shapes.parameters
    trained, objective, c = shapes.adapters if lora else n, objective_of(config), shapes.config
    reference = objective.needs_reference and not lora
    # The critic: all of the model again but its head, which may be the embedding, with one number a position instead.
    critic = n + c.hidden_size + 1 - (0 if c.tie_word_embeddings else c.vocab_size * c.hidden_size)
    critic *= objective.needs_critic
    # A micro-batch has as many tokens as are allowed and there are, and at least one whole chain.
    tokens = max(context, min(train.tokens_per_microbatch, rollout.problems * rollout.group_size * context))
    kept = activation_bytes(shapes, tokens, dtype, lora=lora and not critic, checkpointing=train.gradient_checkpointing)
    part = 1 if train.sharding == "none" else ranks
    trained, n, critic = (-(-size // part) for size in (trained, n, critic))
    return {
        "learner: trained parameters in fp32": 4.0 * trained,
        "learner: their gradients": 4.0 * trained,
        ADAMW: 8.0 * trained,
        "learner: frozen parameters": float(ITEM[dtype] * n if lora else 0),
        "learner: copies of the parameters in bfloat16": 2.0 * max(critic, 0 if lora else n) * (dtype == "bfloat16"),
        REFERENCE: 4.0 * n if reference else 0.0,
        CRITIC: 16.0 * critic,
        ACTIVATIONS: kept,
        "learner: output head and logits in fp32": logits_bytes(shapes, tokens),
    }


def place(config: Config, hardware: Hardware, context: int, ranks: int = 1) -> Placement:
    """Who runs where, whether or not it fits: rank i of the learner on GPU i, or all in this machine's memory.
    `context`: tokens of the longest chain. Raises BadInput where the shapes are unknown or a GPU isn't there."""
    shapes, vllm, item = Shapes.of(config), config.sampler == "vllm", ITEM[config.model.dtype]
    token, served = kv_bytes_per_token(shapes, config.model.dtype), vllm and not config.rollout.servers
    learner, weights = learner_bytes(shapes, config, context, ranks), float(item * shapes.parameters)
    serving = serving_gpus(config, len(hardware.gpus), ranks) if served else ()
    if not hardware.gpus:
        kv_cache = config.server.kv_cache_gb * GIB if served else 0.0
        sampler = {SERVED: weights, KV_CACHE: kv_cache} if served else {"sampler: weights": 0.0 if vllm else weights}
        items = {name: size * ranks for name, size in learner.items()} | sampler | {PUSHED: weights if vllm else 0.0}
        machine = Place("this machine's memory", hardware.memory_gb * GIB, items)
        return Placement([machine], kv_tokens=int(kv_cache // token))
    places = [Place(f"GPU {i}", gpu.memory_gb * GIB, {}) for i, gpu in enumerate(hardware.gpus)]
    for each in places[:ranks]:
        each.items = learner | {"learner: CUDA context": CUDA_CONTEXT}
    if config.sync.backend == "nccl":  # a chunk and its parts, the embedding among them
        places[0].items[PUSHED] = 2.0 * (NCCL_CHUNK + item * shapes.config.vocab_size * shapes.config.hidden_size)
    elif vllm:
        places.append(Place(f"host memory, {config.sync.dir}", math.inf, {PUSHED: weights}))
    if not serving:
        return Placement(places)
    gpu, share, c = places[serving[0]], config.server.gpu_memory_utilization, shapes.config
    if config.rollout.colocate:  # the server gets what the learner leaves, less a reserve
        share = max(0, math.floor(100 * (1 - RESERVE - gpu.needed / gpu.capacity))) / 100
    # vLLM's defaults: at most 8192 tokens in an engine step, 256 sequences decoded together
    step = 8192 * item * (3 * c.intermediate_size + 4 * c.hidden_size) + 3.0 * 4 * 256 * c.vocab_size
    own = {SERVED: weights, "server: CUDA context, activations, logits": CUDA_CONTEXT + step}
    if (lora := config.model.lora) and (rank := served_rank(lora, hardware, config.train.sharding != "none")):
        own["server: room for two adapters"] = 2.0 * item * shapes.adapters * rank / lora.rank
    room = max(0.0, share * gpu.capacity - sum(own.values()))
    gpu.items |= own | {KV_CACHE: max(room, float(token * context))}  # a chain of full length must fit
    if config.rollout.colocate:
        gpu.items[SPARE] = max(gpu.capacity * RESERVE, gpu.capacity - gpu.needed)
    return Placement(places, serving, share, int(room // token))


def served_rank(lora: LoraConfig | None, hardware: Hardware, sharded: bool = False) -> int:
    """The --max-lora-rank of servers that take adapters alone; 0 where they are merged, as is what no server takes, and
    what is sharded: all ranks must gather the same."""
    if lora is None or lora.push == "merged" or sharded or (lora.push == "auto" and not hardware.gpus):
        return 0
    return next((r for r in (1, 8, 16, 32, 64, 128, 256, 320, 512) if r >= lora.rank), 0)


def serving_gpus(config: Config, count: int, ranks: int = 1) -> tuple[int, ...]:
    """Which GPUs serve: rank 0's own with rollout.colocate, else rollout.gpus (default: the first after the learner's
    ranks); BadInput."""
    if count == 0 and not config.rollout.gpus:
        return ()
    if config.rollout.colocate:
        return (0,)
    (gpu,) = config.rollout.gpus or [ranks]
    if gpu < ranks or gpu >= count:
        there = f"there are {count} GPUs, numbered from 0, and the learner runs on " + " to ".join(
            f"GPU {i}" for i in sorted({0, ranks - 1})
        )
        fix = "name another, or set rollout.colocate=true, so that they share it"
        raise BadInput(f"rollout.gpus=[{gpu}]: {there}; {fix}")
    return (gpu,)
