from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rewards.errors import BadInput
from rl.batch import flatten, pack
from rl.model import has_weights, load_policy, policy_logprobs, save_model
from tests.models import ARCHITECTURES, tiny_model
from tests.rl.chains import make_chain


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_saved_is_what_plain_transformers_loads(tmp_path: Path, arch: str, tied: bool) -> None:
    source = tiny_model(tmp_path / "source", arch, tied)
    # sampling defaults that transformers itself refuses to save without do_sample
    (source / "generation_config.json").write_text(json.dumps({"temperature": 0.1, "top_k": 1}))
    model, loaded = load_policy(source, "float32", seed=0)
    assert loaded
    with torch.no_grad():
        next(model.parameters()).add_(0.01)
    save_model(model, source, tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    for (name, a), (_, b) in zip(model.state_dict().items(), plain.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("café").input_ids == [99, 97, 102, 195, 169]
    assert "ponder" not in (tmp_path / "out" / "config.json").read_text()
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"temperature": 0.1, "top_k": 1}


def test_random_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "m", weights=False)
    assert not has_weights(path)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first, loaded = load_policy(path, "float32", seed=3)
    assert not loaded
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    again, _ = load_policy(path, "float32", seed=3)
    other, _ = load_policy(path, "float32", seed=4)
    a, b, c = (model.get_input_embeddings().weight for model in (first, again, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_random_model_is_saved_for_a_server_to_load(tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "m", weights=False)
    random, _ = load_policy(path, "float32", seed=3)
    save_model(random, path, tmp_path / "out")
    loaded, from_disk = load_policy(tmp_path / "out", "float32", seed=9)
    assert from_disk
    assert torch.equal(random.get_input_embeddings().weight, loaded.get_input_embeddings().weight)


def test_dtype_is_the_one_named_and_dropout_is_zero(tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "m", attention_dropout=0.5)  # its config says float32
    model, _ = load_policy(path, "bfloat16", seed=0)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config.attention_dropout == 0.0


def break_model(path: Path, fault: str) -> Path:
    if fault == "no directory":
        return path / "nowhere"
    if fault == "no config":
        (path / "config.json").unlink()
    if fault == "broken config":
        (path / "config.json").write_text("{")
    if fault == "no tokenizer":
        for file in path.glob("tokenizer*"):
            file.unlink()
    if fault == "broken tokenizer":
        (path / "tokenizer.json").write_text('{"model": 3}')
    if fault == "cut weights":
        weights = path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    if fault == "pickled weights":
        (path / "model.safetensors").rename(path / "pytorch_model.bin")
    return path


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        ("no directory", "no such directory"),
        ("no config", "config.json"),
        ("broken config", "config.json"),
        ("no tokenizer", "tokenizer"),
        ("broken tokenizer", "tokenizer"),
        ("cut weights", "weights"),
        ("pickled weights", "safetensors"),
    ],
)
def test_broken_directories_are_refused_in_one_line(tmp_path: Path, tiny_llama: Path, fault: str, word: str) -> None:
    path = break_model(shutil.copytree(tiny_llama, tmp_path / "m"), fault)
    with pytest.raises(BadInput, match=word) as caught:
        load_policy(path, "float32", seed=0)
    assert "\n" not in str(caught.value)


def test_weights_with_a_tensor_missing_are_refused(tmp_path: Path, tiny_llama: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = shutil.copytree(tiny_llama, tmp_path / "m")
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=r"layers\.1\.mlp\.up_proj"):
        load_policy(path, "float32", seed=0)


def test_a_directory_that_cannot_be_written_is_bad_input(tmp_path: Path, tiny_llama: Path) -> None:
    model, _ = load_policy(tiny_llama, "float32", seed=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="can't save"):
        save_model(model, tiny_llama, tmp_path / "file" / "out")


def test_logits_changed_after_the_head_are_refused(tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "m", "granite", logits_scaling=4.0)
    with pytest.raises(BadInput, match="granite"):
        load_policy(path, "float32", seed=0)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_policy_logprobs_equal_the_models_own_logits(tiny_llama: Path, temperature: float) -> None:
    chains = [make_chain([5, 6, 7, 8], 1, inserted=(2,)), make_chain([9, 10, 11], 2)]
    batch = flatten(chains, 0)
    (micro,) = pack(batch, [0, 1], 100)
    model, _ = load_policy(tiny_llama, "float32", seed=0)
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    with torch.no_grad():
        got, _ = policy_logprobs(model, micro, batch.targets, temperature)
        want = []
        for chain in chains:
            logits = plain(torch.tensor([chain.token_ids])).logits[0] / temperature
            logprobs = logits.log_softmax(-1)
            want += [logprobs[t - 1, chain.token_ids[t]] for t, sampled in enumerate(chain.sampled) if sampled]
    torch.testing.assert_close(got, torch.stack(want), atol=1e-6, rtol=0)
