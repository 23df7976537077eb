"""The plan's formulas: by hand, against torch's own accounts, and what follows when a number grows."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig

from rewards.errors import BadInput
from rl.attention import VarlenPlan
from rl.config import Config, LoraConfig, parse_config
from rl.memory import (
    ACTIVATIONS,
    ADAMW,
    CRITIC,
    KV_CACHE,
    PUSHED,
    REFERENCE,
    SERVED,
    SPARE,
    Placement,
    Shapes,
    activation_bytes,
    count_parameters,
    kv_bytes_per_token,
    learner_bytes,
    logits_bytes,
    place,
    shapes_path,
)
from rl.model import add_adapter, load_policy
from rollout.server.hardware import Gpu, Hardware
from tests.models import tiny_model
from tests.rl.chains import small_model

QWEN = "Qwen/Qwen2.5-1.5B-Instruct"
CARD = Hardware(cores=16, memory_gb=64.0, gpus=(Gpu("as stated", 24.0),))
TWO = replace(CARD, gpus=CARD.gpus * 2)


def llama(vocab: int, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads,
    )  # fmt: skip


SMALL = Shapes(llama(32, 8, 16, layers=2, heads=2, kv_heads=1), parameters=1000)
TRAINED, GRADIENTS = "learner: trained parameters in fp32", "learner: their gradients"
FROZEN, CASTS = "learner: frozen parameters", "learner: copies of the parameters in bfloat16"


def config(lora: dict[str, Any] | None = None, dtype: str = "bfloat16", path: str = QWEN, **sections: Any) -> Config:
    data: dict[str, Any] = {"model": {"path": path, "dtype": dtype, "lora": lora}, "task": "letters"}
    return parse_config(data | sections)


def on_card(hardware: Hardware = CARD, context: int = 2048, **how: Any) -> Placement:
    rollout = {"colocate": len(hardware.gpus) == 1} | how.pop("rollout", {})
    train = {"tokens_per_microbatch": 8192, "gradient_checkpointing": True} | how.pop("train", {})
    return place(config(rollout=rollout, train=train, **how), hardware, context)


def test_qwen_by_hand() -> None:
    """A tied embedding, 28 layers of q, k, v with biases, o, three MLP matrices and two norms, and a norm."""
    attention = 2 * 1536 * 1536 + 1536 + 2 * (1536 * 256 + 256)
    layer = attention + 3 * 1536 * 8960 + 2 * 1536
    assert 151936 * 1536 + 28 * layer + 1536 == 1_543_714_304
    shapes = Shapes.of(config({"rank": 16}))
    assert shapes.parameters == count_parameters(str(shapes_path(QWEN))) == 1_543_714_304
    # A and B of rank 16 on q and o (1,536 to 1,536), k and v (to 256), and three of 1,536 and 8,960
    assert shapes.adapters == 28 * 16 * (2 * 3072 + 2 * 1792 + 3 * 10496) == 18_464_768
    assert kv_bytes_per_token(shapes, "bfloat16") == 28_672
    assert kv_bytes_per_token(shapes, "float32") == 57_344


def test_full_training_takes_sixteen_bytes_a_parameter_and_lora_two_and_sixteen_an_adapter() -> None:
    full, n = learner_bytes(Shapes.of(config()), config(), 2048), 1_543_714_304
    assert full[TRAINED] + full[GRADIENTS] + full[ADAMW] == 16 * n  # 24.7 GB
    assert (full[FROZEN], full[CASTS], full[REFERENCE]) == (0, 2 * n, 0)
    lora = config({"rank": 16}, objective={"kl_weight": 0.1})
    held = learner_bytes(Shapes.of(lora), lora, 2048)
    assert held[TRAINED] + held[GRADIENTS] + held[ADAMW] == 16 * 18_464_768
    assert (held[FROZEN], held[CASTS], held[REFERENCE]) == (2 * n, 0, 0)  # the base is its own reference
    assert learner_bytes(Shapes.of(config()), config(objective={"kl_weight": 0.1}), 2048)[REFERENCE] == 4 * n


def test_a_critic_takes_sixteen_bytes_of_all_but_the_head_with_lora_too() -> None:
    plain, ppo, n = config(), config(algorithm="ppo"), 1_543_714_304
    own = n + 1536 + 1  # Qwen's head is its embedding
    without, held = (learner_bytes(Shapes.of(plain), c, 2048) for c in (plain, ppo))
    assert (without[CRITIC], held[CRITIC]) == (0, 16 * own)
    assert {k: v for k, v in held.items() if k not in (CRITIC, CASTS)} == {
        k: v for k, v in without.items() if k not in (CRITIC, CASTS)
    }
    lora = config({"rank": 16}, algorithm="ppo")
    held = learner_bytes(Shapes.of(lora), lora, 2048)
    assert (held[CRITIC], held[CASTS], held[ACTIVATIONS]) == (16 * own, 2 * own, without[ACTIVATIONS])
    untied = replace(SMALL, config=llama(32, 8, 16, layers=2, heads=2, kv_heads=1))
    untied.config.tie_word_embeddings = False
    assert learner_bytes(untied, ppo, 8)[CRITIC] == 16 * (1000 + 8 + 1 - 32 * 8)
    with pytest.raises(BadInput, match=r"critic.*24.7 GB: choose an algorithm without a critic"):
        on_card(lora={"rank": 16}, algorithm="ppo").check()


def test_the_counted_critic_is_the_one_that_is_made() -> None:
    from rl.critic import ValueModel

    for tied in (True, False):
        model = small_model(tie_word_embeddings=tied)
        shapes = Shapes(model.config, parameters=sum(p.numel() for p in model.parameters()))
        made = sum(p.numel() for p in ValueModel(model.base_model).parameters())
        assert learner_bytes(shapes, config(algorithm="ppo"), 8)[CRITIC] == 16 * made


def test_activations_by_hand() -> None:
    """fp32: 24 x 8 + 16 x 16 + 12 x 8 + 8 x 4 = 576 bytes a token and layer; 2 layers and one to work with."""
    assert activation_bytes(SMALL, 10, "float32", lora=False, checkpointing=False) == 10 * 3 * 576
    assert activation_bytes(SMALL, 10, "float32", lora=False, checkpointing=True) == 10 * (2 * 32 + 2 * 576)
    assert activation_bytes(SMALL, 10, "float32", lora=True, checkpointing=False) == 10 * 3 * (576 - 64)
    assert activation_bytes(SMALL, 10, "bfloat16", lora=False, checkpointing=False) == 10 * 3 * (208 + 128 + 48 + 16)
    normed = replace(SMALL, head_norms=True)
    assert activation_bytes(normed, 10, "float32", lora=False, checkpointing=False) == 10 * 3 * (576 + 8 * 12)


def test_logits_by_hand() -> None:
    assert logits_bytes(SMALL, 10) == 4 * (3 * 320 + 2 * 32 * 8)
    assert logits_bytes(SMALL, 2**26) == 4 * (2 * 2**25 + 2 * 32 * 8)  # chunk by chunk, nothing kept


def kept_by_torch(arch: str, dtype: str, layers: int, lora: bool, checkpointing: bool, tokens: int = 512) -> int:
    """Bytes that a model's body keeps for the backward pass beside its parameters and their casts."""
    model = small_model(arch, hidden_size=64, intermediate_size=160, num_hidden_layers=layers, head_dim=16)
    if lora:
        if dtype == "bfloat16":
            nn.Module.to(model, torch.bfloat16)
        add_adapter(model, LoraConfig(rank=2), 0, "base")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    shapes = {tuple(p.shape) for p in model.parameters()} | {
        tuple(p.T.shape) for p in model.parameters() if p.dim() == 2
    }
    kept: dict[int, tuple[int, Any]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tuple(tensor.shape) not in shapes:
            kept[storage.data_ptr()] = (storage.nbytes(), storage)  # alive, so that no address is used again
        return tensor

    plan = VarlenPlan(torch.tensor([0, tokens], dtype=torch.int32), [tokens])
    cast = torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), cast:
        model.train().base_model(input_ids=torch.arange(tokens)[None] % 32, use_cache=False, varlen=plan)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_torch_keeps(arch: str, dtype: str, lora: bool, checkpointing: bool) -> None:
    """For two layers more, so that what is kept once in a model falls out."""
    configs = [llama(32, 64, 160, n, heads=4, kv_heads=2) for n in (1, 3)]
    shapes = [Shapes(c, parameters=0, head_norms=arch == "qwen3") for c in configs]
    one, three = (activation_bytes(s, 512, dtype, lora=lora, checkpointing=checkpointing) for s in shapes)
    kept = kept_by_torch(arch, dtype, 3, lora, checkpointing) - kept_by_torch(arch, dtype, 1, lora, checkpointing)
    assert three - one == pytest.approx(kept, rel=0.1)


def test_a_shared_card_holds_lora_and_not_full_training() -> None:
    shared = on_card(lora={"rank": 16})
    shared.check()
    (card, host) = shared.places
    assert card.needed == pytest.approx(24 * 2**30)
    assert card.items[SPARE] >= 0.05 * card.capacity
    assert shared.server_gpus == (0,)
    assert shared.server_share is not None
    server = sum(size for name, size in card.items.items() if name.startswith("server"))
    assert server == pytest.approx(shared.server_share * card.capacity)
    assert shared.kv_tokens == card.items[KV_CACHE] // 28_672
    assert list(host.items.values()) == [2 * 1_543_714_304]
    with pytest.raises(BadInput, match=r"GPU 0 has 25.8 GB .* AdamW.*12.3 GB: train adapters only \(model.lora"):
        on_card().check()


@pytest.mark.parametrize(
    ("memory", "train", "words"),
    [
        (1.0, {}, "server: weights, 3.1 GB: use a smaller model.path"),
        (24.0, {"gradient_checkpointing": False}, "activations of a micro-batch.*lower train.tokens_per_microbatch"),
    ],
)
def test_what_does_not_fit_names_the_largest_and_the_remedy(memory: float, train: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        on_card(replace(CARD, gpus=(Gpu("x", memory),)), lora={"rank": 16}, train=train).check()


def test_two_gpus_are_the_learners_and_the_servers() -> None:
    apart = on_card(TWO, lora={"rank": 16})
    apart.check()
    assert SERVED not in apart.places[0].items
    assert ACTIVATIONS not in apart.places[1].items
    assert (apart.server_gpus, apart.server_share) == ((1,), 0.9)
    assert on_card(replace(TWO, gpus=TWO.gpus * 2), lora={"rank": 16}, rollout={"gpus": [3]}).server_gpus == (3,)


def test_over_nccl_chunks_lie_on_the_learners_card_and_nothing_in_the_host() -> None:
    file, nccl = (on_card(TWO, lora={"rank": 16}, sync={"backend": backend}) for backend in ("file", "nccl"))
    assert [PUSHED in place.items for place in file.places] == [False, False, True]
    assert [PUSHED in place.items for place in nccl.places] == [True, False]
    assert nccl.places[0].items[PUSHED] == 2 * (2**28 + 2 * 151936 * 1536)


@pytest.mark.parametrize(
    ("hardware", "rollout", "words"),
    [
        (CARD, {"colocate": False}, r"there are 1 GPUs.*set rollout.colocate=true"),
        (TWO, {"gpus": [0]}, "the learner runs on GPU 0"),
        (TWO, {"gpus": [2]}, r"rollout.gpus=\[2\]: there are 2 GPUs"),
        (replace(CARD, gpus=()), {"colocate": False, "gpus": [1]}, r"rollout.gpus=\[1\]: there are 0 GPUs"),
    ],
)
def test_gpus_that_cannot_serve_are_refused(hardware: Hardware, rollout: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        on_card(hardware, lora={"rank": 16}, rollout=rollout)


@pytest.mark.parametrize("other", [{"sampler": "transformers"}, {"rollout": {"servers": ["http://x"]}}])
def test_without_a_server_here_the_learner_has_the_card(other: dict[str, Any]) -> None:
    alone = on_card(TWO, lora={"rank": 16}, **other)
    assert (alone.server_gpus, alone.server_share) == ((), None)
    assert SERVED not in alone.places[0].items


def test_shapes_of_a_real_directory_are_those_of_its_model(tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "m", "qwen3", tied=False)
    model, _ = load_policy(path, "float32", 0)
    lora: dict[str, Any] = {"rank": 4, "targets": ["q_proj", "down_proj"]}
    shapes = Shapes.of(config(lora, path=str(path)))
    assert shapes.parameters == sum(p.numel() for p in model.parameters())
    add_adapter(model, LoraConfig(**lora), 0, "base")
    assert shapes.adapters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (shapes.config.head_dim, shapes.head_norms) == (64, True)


def test_a_model_without_shapes_is_refused_by_name() -> None:
    with pytest.raises(BadInput, match=r"configs/models/Huge-1T/config\.json"):
        shapes_path("someone/Huge-1T")


@given(st.integers(1, 2**20), st.sampled_from(["float32", "bfloat16"]), st.booleans())
def test_more_tokens_never_take_less(tokens: int, dtype: str, lora: bool) -> None:
    def both(n: int) -> list[float]:
        return [activation_bytes(SMALL, n, dtype, lora=lora, checkpointing=c) for c in (False, True)]

    assert all(a < b for a, b in zip(both(tokens), both(tokens + 1), strict=True))
    assert logits_bytes(SMALL, tokens) <= logits_bytes(SMALL, tokens + 1)


def test_a_micro_batch_is_no_larger_than_a_step_and_no_smaller_than_a_chain() -> None:
    few = config(rollout={"problems": 2, "group_size": 2})
    for context, tokens in ((100, 400), (5000, 16384), (20000, 20000)):
        wanted = activation_bytes(SMALL, tokens, "bfloat16", lora=False, checkpointing=False)
        assert learner_bytes(SMALL, few, context)[ACTIVATIONS] == wanted


def test_ranks_have_a_card_each_the_server_the_next_and_sharded_weights_are_parts() -> None:
    cards = replace(CARD, gpus=CARD.gpus * 3)
    whole, parts = (
        place(config(train={"tokens_per_microbatch": 8192, "sharding": sharding}), cards, 2048, ranks=2)
        for sharding in ("none", "fsdp2")
    )
    assert whole.server_gpus == (2,)
    assert [TRAINED in each.items for each in whole.places[:3]] == [True, True, False]
    assert parts.places[1].items[TRAINED] == whole.places[1].items[TRAINED] / 2
    assert parts.places[0].items[ACTIVATIONS] == whole.places[0].items[ACTIVATIONS]
    with pytest.raises(BadInput, match=r"rollout.gpus=\[1\]: there are 3 GPUs.* on GPU 0 to GPU 1"):
        place(config(rollout={"gpus": [1]}), cards, 2048, ranks=2)
