"""LoRA: what trains, what is pushed and saved, exact resume, the reference, and what the selftest sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from rewards.errors import BadInput
from rl import attention
from rl.build import build_learner, prepare
from rl.config import Config, LoraConfig, ObjectiveConfig, TrainConfig, override_config
from rl.launch import launch
from rl.learner import Learner
from rl.metrics import read_metrics
from rl.model import add_adapter, load_policy, save_model, twin
from rl.presets import resolve_objective
from rl.rundir import RunDir
from rl.selftest import Selftest, widen
from rl.sync import ModuleSource
from tests.conftest import VllmServer
from tests.models import ARCHITECTURES, tiny_model
from tests.rl.chains import make_chain, make_group, small_model
from tests.rl.test_loop import make_config
from tests.rl.test_parity import K3_BOUND, LONG, MEAN_BOUND, SEEN, SHORT, Wire
from tests.rl.test_selftest import Backend

LORA: dict[str, Any] = {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "down_proj"]}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "qwen2", "qwen2")


def adapted(path: Path, seed: int = 0, dtype: str = "float32", noise: float = 0.0, **lora: Any) -> PreTrainedModel:
    """A model with adapters; `noise` moves B away from zero."""
    model, _ = load_policy(path, dtype, 0)
    add_adapter(model, LoraConfig(**(LORA | lora)), seed, "the-base")
    generator = torch.Generator().manual_seed(1)
    for p in trained(model).values():
        p.data += noise * torch.randn(p.shape, generator=generator)
    return model


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def frozen(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if not p.requires_grad}


def sent(model: nn.Module, dtype: str = "float32") -> dict[str, torch.Tensor]:
    return dict(ModuleSource(model, dtype).tensors())


def test_fp32_adapters_alone_train_over_a_base_in_the_served_dtype(model_path: Path) -> None:
    model = adapted(model_path, dtype="bfloat16")
    assert len(trained(model)) == 2 * 2 * 2  # A and B on two layers' q and down
    assert {p.dtype for p in trained(model).values()} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    learner = build_learner(override_config(make_config(Path("runs"), "x", model={"path": str(model_path)}), [
        "model.lora={rank: 4, targets: [q_proj]}",
    ]))  # fmt: skip
    held = [p for group in learner.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in trained(learner.policy).values()}
    assert sum(p.numel() for p in held) == 2 * 4 * (128 + 128)


def test_init_depends_on_the_seed_alone(model_path: Path) -> None:
    torch.manual_seed(1)
    first = adapted(model_path, seed=3)
    torch.manual_seed(2)
    again, other = adapted(model_path, seed=3), adapted(model_path, seed=4)
    name = "model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert torch.equal(trained(first)[name], trained(again)[name])
    assert not torch.equal(trained(first)[name], trained(other)[name])
    assert not any(p.any() for name, p in trained(first).items() if "lora_B" in name)


def test_a_rewarded_token_becomes_likelier_and_the_base_stays() -> None:
    model = small_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    add_adapter(model, LoraConfig(rank=4), 0, "the-base")
    train = TrainConfig(threads=1, learning_rate=0.05)
    learner = Learner(model, resolve_objective("grpo", ObjectiveConfig()), train, temperature=1.0, total_steps=10)
    good, bad = make_chain([1, 2], 1, value=1.0), make_chain([1, 3], 1)
    old = [float(x) for x in learner.score_logprobs([good, bad])]
    for version in range(3):
        learner.step([make_group([good, bad])], version)
    new = [float(x) for x in learner.score_logprobs([good, bad])]
    assert new[0] > old[0] + 0.5
    assert new[1] < old[1] - 0.5
    assert all(torch.equal(p, before[name.replace(".base_layer", "")]) for name, p in frozen(model).items())


class Toy(nn.Module):
    """One linear layer under peft."""

    def __init__(self, weight: list[list[float]], a: list[list[float]], b: list[list[float]], alpha: float) -> None:
        import peft

        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 2, bias=False))
        config = peft.LoraConfig(r=len(a), lora_alpha=alpha, target_modules=["0"])
        peft.inject_adapter_in_model(config, self.body)
        layer: Any = self.body[0]
        for parameter, values in ((layer.base_layer, weight), (layer.lora_A.default, a), (layer.lora_B.default, b)):
            parameter.weight.data = torch.tensor(values)


def test_what_is_sent_by_hand() -> None:
    """W + alpha / r x B A: [[1, 2], [3, 4]] + 2 x [[1], [2]] [[3, 4]]."""
    toy = Toy([[1.0, 2.0], [3.0, 4.0]], a=[[3.0, 4.0]], b=[[1.0], [2.0]], alpha=2.0)
    assert sent(toy)["body.0.weight"].tolist() == [[7.0, 10.0], [15.0, 20.0]]
    assert toy.get_parameter("body.0.base_layer.weight").tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert list(sent(toy)) == ["body.0.weight"]


NUMBERS = st.floats(-4, 4, width=32)


@settings(max_examples=25, deadline=None)
@given(st.lists(NUMBERS, min_size=12, max_size=12), st.floats(0.5, 64))
def test_what_is_sent_is_what_the_layer_computes(values: list[float], alpha: float) -> None:
    """As a slow loop over indices, and as the layer's own forward pass."""
    w, a, b = ([values[i : i + 2] for i in range(start, start + 4, 2)] for start in (0, 4, 8))
    toy = Toy(w, a, b, alpha)
    merged = sent(toy)["body.0.weight"]
    slow = [[w[i][j] + alpha / 2 * sum(b[i][r] * a[r][j] for r in (0, 1)) for j in (0, 1)] for i in (0, 1)]
    torch.testing.assert_close(merged, torch.tensor(slow), rtol=1e-5, atol=1e-4)
    x = torch.eye(2)
    torch.testing.assert_close(toy.body(x), x @ merged.T, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_push_sends_plain_names_merged_in_fp32_and_cast_once(model_path: Path, dtype: str) -> None:
    model, plain = adapted(model_path, dtype=dtype, noise=0.1), load_policy(model_path, dtype, 0)[0]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    kind = getattr(torch, dtype)
    assert ModuleSource(model, dtype).manifest() == ModuleSource(plain, dtype).manifest()
    got, base = sent(model, dtype), dict(plain.named_parameters())
    for name, tensor in got.items():
        a, b = (before.get(f"{name.removesuffix('.weight')}.lora_{x}.default.weight") for x in "AB")
        wanted = base[name] if a is None else base[name].float() + 2.0 * (b @ a)
        assert torch.equal(tensor, wanted.to(kind)), name
        assert torch.equal(tensor, base[name]) == (a is None), name
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (["lm_head"], "lm_head is no linear layer of the model's body"),
        (["embed_tokens"], "embed_tokens is no linear layer"),
        (["q_proj", "norm"], "norm is no linear layer"),
        (["qproj"], "no 'qproj'; choose among .*q_proj.*all-linear"),
    ],
)
def test_targets_that_cannot_be_adapted_are_refused_by_name(model_path: Path, targets: list[str], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        adapted(model_path, targets=targets)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_plain_transformers_loads_the_merged_model_and_plain_peft_the_adapter(
    tmp_path: Path, arch: str, tied: bool
) -> None:
    from peft import PeftModel

    source = tiny_model(tmp_path / "source", arch, tied)
    model = adapted(source, noise=0.1, targets="all-linear")
    save_model(model, source, tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    ids = torch.arange(40).unsqueeze(0)
    with torch.no_grad():
        untouched = base(ids).logits
        through_peft = PeftModel.from_pretrained(base, tmp_path / "out/adapter")(ids).logits
        torch.testing.assert_close(merged(ids).logits, through_peft, atol=1e-5, rtol=0)
    assert (through_peft - untouched).abs().max() > 0.01
    assert not [name for name in load_file(tmp_path / "out/model.safetensors") if "lora" in name or "base" in name]


def test_a_checkpoints_adapter_comes_back_exactly_or_is_refused(tmp_path: Path, model_path: Path) -> None:
    model = adapted(model_path, noise=0.1)
    save_model(model, model_path, tmp_path / "out")
    again, _ = load_policy(model_path, "float32", 0)
    add_adapter(again, LoraConfig(**LORA), 9, "the-base", tmp_path / "out")
    assert all(torch.equal(p, trained(model)[name]) for name, p in trained(again).items())
    for path, lora, words in (
        (tmp_path / "out", LORA | {"rank": 2}, "other adapters"),
        (tmp_path / "out", LORA | {"targets": ["q_proj"]}, "other adapters"),
        (model_path, LORA, "can't be read"),
    ):
        fresh, _ = load_policy(model_path, "float32", 0)
        with pytest.raises(BadInput, match=words):
            add_adapter(fresh, LoraConfig(**lora), 0, "the-base", path)


def test_the_reference_is_the_base_at_no_memory(model_path: Path) -> None:
    model, _ = load_policy(model_path, "float32", 0)
    reference = twin(model)
    add_adapter(model, LoraConfig(**LORA), 0, "the-base")
    mine = {name: p.data_ptr() for name, p in ((n.replace(".base_layer", ""), p) for n, p in model.named_parameters())}
    assert {name: p.data_ptr() for name, p in reference.named_parameters()}.items() <= mine.items()
    for p in trained(model).values():
        p.data += 0.1
    ids, plan = torch.arange(8).unsqueeze(0), attention.VarlenPlan(torch.tensor([0, 8], dtype=torch.int32), [8])
    fresh, _ = load_policy(model_path, "float32", 0)
    with torch.no_grad():
        a, b, c = (m(ids, use_cache=False, varlen=plan).logits for m in (reference, fresh, model))
    assert torch.equal(a, b)
    assert not torch.allclose(a, c, atol=0.01)


def lora_config(tmp_path: Path, name: str, model: Path, **train: Any) -> Config:
    return make_config(
        tmp_path,
        name,
        model={"path": str(model), "lora": LORA | {"targets": "all-linear"}},
        objective={"kl_weight": 0.1},
        train={"learning_rate": 0.01, "minibatches": 1} | train,
    )


def run_once(config: Config, **how: Any) -> RunDir:
    run = RunDir(config.run_dir)
    launch(config, run, **how)
    return run


def test_two_steps_resume_two_steps_equal_four_bit_for_bit(tmp_path: Path, model_path: Path) -> None:
    whole = run_once(lora_config(tmp_path, "whole", model_path))
    config = lora_config(tmp_path, "parts", model_path, steps=2)
    parts = run_once(config)
    run_once(override_config(config, ["train.steps=4"]), resume=True)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors", "trainer/state.safetensors"):
        a, b = ((run.checkpoints / "step-4" / name).read_bytes() for run in (whole, parts))
        assert a == b, name
    rows = read_metrics(whole.metrics)
    assert max(row["mismatch_kl/fresh"] for row in rows) < 1e-9  # parity after each push of merged adapters
    assert rows[0]["kl/ref"] == pytest.approx(0, abs=1e-9)  # without its adapter, the policy is the reference
    assert rows[-1]["kl/ref"] > 1e-3
    start = load_file(model_path / "model.safetensors")
    end = load_file(whole.checkpoints / "step-4/model.safetensors")
    assert torch.equal(start["model.embed_tokens.weight"], end["model.embed_tokens.weight"])
    assert not torch.equal(*(t["model.layers.1.mlp.up_proj.weight"] for t in (start, end)))
    adapter = load_file(whole.checkpoints / "step-4/adapter/adapter_model.safetensors")
    assert len(adapter) == 2 * 2 * 7


async def test_the_selftest_changes_each_layer_alone_and_names_one_that_does_not_arrive(model_path: Path) -> None:
    config = lora_config(Path("runs"), "x", model_path, learning_rate=0.0)
    setup = widen(prepare(without_kl(config)))
    learner = build_learner(setup.config)
    backend = Backend(setup)
    report = await Selftest(setup, backend, learner).run()
    await backend.aclose()
    assert report.reasons == []
    assert len(report.modules) == 2 * 7
    assert max(report.modules.values()) < 1e-5

    lost = "model.layers.1.mlp.up_proj"
    backend = Backend(setup, forgotten=f"{lost}.weight")
    selftest = Selftest(setup, backend, learner)
    await selftest.push()
    await selftest.measure()
    await selftest.check_modules()
    await backend.aclose()
    (reason,) = selftest.report.reasons
    assert reason.startswith(f"the adapter of {lost} does not reach the sampler")


def without_kl(config: Config) -> Config:
    return override_config(config, ["objective.kl_weight=0.0"])


async def test_an_adapter_that_the_learner_ignores_is_dead(model_path: Path) -> None:
    setup = widen(prepare(without_kl(lora_config(Path("runs"), "x", model_path))))
    learner = build_learner(setup.config)
    learner.policy.get_submodule("model.layers.0.mlp.up_proj").enable_adapters(False)
    backend = Backend(setup)
    selftest = Selftest(setup, backend, learner)
    await selftest.push()
    await selftest.measure()
    await selftest.check_modules()
    await backend.aclose()
    assert any("model.layers.0.mlp.up_proj can change" in reason for reason in selftest.report.reasons)


@pytest.mark.vllm
async def test_vllm_agrees_after_a_push_of_merged_adapters(vllm_server: VllmServer) -> None:
    wire = Wire(vllm_server.url, vllm_server.key, vllm_server.sync_dir, vllm_server.model_path)
    plain = wire.model
    wire.model, _ = load_policy(vllm_server.model_path, "float32", 0, attention="sdpa")
    add_adapter(wire.model, LoraConfig(**LORA), 0, "the-base")
    try:
        await wire.push()
        assert (await wire.drift(SHORT, 1.0))[0] <= MEAN_BOUND
        for p in trained(wire.model).values():
            p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
        assert (await wire.drift(SHORT, 1.0))[0] > SEEN  # not pushed yet
        await wire.push()
        for prompt, temperature in ((SHORT, 0.7), (LONG, 1.0), (LONG, 1.0)):
            mean, k3 = await wire.drift(prompt, temperature)
            assert mean <= MEAN_BOUND
            assert k3 <= K3_BOUND
    finally:
        wire.model = plain
        await wire.push()
        await wire.aclose()
