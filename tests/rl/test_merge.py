"""`ponder merge`, and `ponder eval` of an adapter: what is written, and what is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rl.cli import app
from rl.exits import run_command
from rl.model import save_model
from tests.models import tiny_model
from tests.rl.test_lora import adapted

IDS = torch.arange(40).unsqueeze(0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "qwen2", "qwen2")


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of ours, whose adapter names its base by its path."""
    model, out = adapted(base, noise=0.1, targets="all-linear"), tmp_path_factory.mktemp("runs") / "step-1"
    model.peft_config["default"].base_model_name_or_path = str(base)
    save_model(model, base, out)
    return out


def ponder(*words: object) -> int:
    return run_command(lambda: app([str(word) for word in words], standalone_mode=False))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def load(path: Path, **how: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, **({"dtype": torch.float32} | how))


def test_a_checkpoint_and_its_adapter_alone_give_the_model_that_the_checkpoint_is(
    tmp_path: Path, made: Path, base: Path
) -> None:
    assert ponder("merge", made, tmp_path / "a") == 0
    shutil.copytree(made / "adapter", tmp_path / "alone")
    moved = shutil.copytree(base, tmp_path / "moved")
    assert ponder("merge", tmp_path / "alone", tmp_path / "b", "--base", moved) == 0
    wanted = load_file(made / "model.safetensors")
    for out in (tmp_path / "a", tmp_path / "b"):
        got = load_file(out / "model.safetensors")
        assert got.keys() == wanted.keys()
        assert all(torch.equal(got[name], tensor) for name, tensor in wanted.items())
        assert {p.name for p in base.iterdir()} <= {p.name for p in out.iterdir()}
        assert not (out / "adapter").exists()
    through_peft = PeftModel.from_pretrained(load(base), made / "adapter")
    torch.testing.assert_close(logits(load(tmp_path / "a")), logits(through_peft), atol=1e-5, rtol=0)
    assert (logits(load(base)) - logits(through_peft)).abs().max() > 0.01


def foreign(base: Path, out: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """An adapter made and saved by peft alone, its B away from zero."""
    config = PeftConfig(**({"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj"]} | settings))
    model: Any = get_peft_model(load(base, dtype=dtype), config)
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = (p.data + 0.1 * torch.randn(p.shape, generator=generator)).to(p.dtype)
    model.save_pretrained(out)
    return model


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "lora_dropout": 0.1},
        {"rank_pattern": {"up_proj": 2}, "alpha_pattern": {"q_proj": 9}},
        {"target_modules": r".*\.1\.self_attn\.[kv]_proj", "init_lora_weights": "gaussian"},
        {"layers_to_transform": [1]},
    ],
    ids=["plain", "rslora", "patterns", "expression", "layers"],
)
def test_adapters_that_peft_made_merge_to_what_peft_computes(tmp_path: Path, base: Path, settings: Any) -> None:
    model = foreign(base, tmp_path / "adapter", **settings).eval()
    assert ponder("merge", tmp_path / "adapter", tmp_path / "out", "--base", base) == 0
    torch.testing.assert_close(logits(load(tmp_path / "out")), logits(model), atol=2e-5, rtol=0)
    assert (logits(load(base)) - logits(model)).abs().max() > 0.01


def test_a_half_base_is_merged_in_fp32_and_cast_once(tmp_path: Path, base: Path) -> None:
    load(base, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    for file in base.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "half")
    foreign(base, tmp_path / "adapter")
    assert ponder("merge", tmp_path / "adapter", tmp_path / "out", "--base", tmp_path / "half") == 0
    half, got, saved = (
        load_file(tmp_path / name / f"{kind}.safetensors")
        for name, kind in (("half", "model"), ("out", "model"), ("adapter", "adapter_model"))
    )
    for name, tensor in got.items():
        a, b = (saved.get(f"base_model.model.{name.removesuffix('.weight')}.lora_{x}.weight") for x in "AB")
        wanted = half[name] if a is None or b is None else half[name].float() + 1.5 * (b @ a)
        assert torch.equal(tensor, wanted.to(torch.bfloat16)), name


def edited(made: Path, to: Path, **said: Any) -> Path:
    shutil.copytree(made / "adapter", to)
    file = to / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | said))
    return to


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"use_dora": True}, "use_dora=True, which can't be merged"),
        ({"modules_to_save": ["norm"]}, "modules_to_save=['norm']"),
        ({"bias": "all"}, "bias='all'"),
        ({"target_parameters": ["experts.w"]}, "target_parameters=['experts.w']"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"base_model_name_or_path": "some/where"}, "some/where, base of"),
        ({"r": 2}, "holds other adapters"),
        ({"target_modules": ["q_proj"]}, "holds other adapters"),
        ({"target_modules": ["nowhere"]}, "does not fit"),
        ({"target_modules": ["embed_tokens"]}, "the embedding or the output head"),
        ({"target_modules": ["lm_head"]}, "the embedding or the output head"),
    ],
)
def test_what_cannot_be_merged_is_refused_in_one_line(
    tmp_path: Path, made: Path, said: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ponder("merge", edited(made, tmp_path / "adapter", **said), tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not (tmp_path / "out").exists()


def test_other_bases_and_no_adapters_are_refused(
    tmp_path: Path, made: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = tiny_model(tmp_path / "wide", "qwen2", hidden_size=192)
    empty = tiny_model(tmp_path / "empty", "qwen2", weights=False)
    for path, out, chosen, words in (
        (made, "out", wide, "holds other adapters"),
        (made, "out", empty, "has no weights here"),
        (made, "out", tmp_path / "gone", "has no weights here"),
        (base, "out", base, "has no adapter_config.json"),
        (made, "wide", base, "is there already"),
    ):
        assert ponder("merge", path, tmp_path / out, "--base", chosen) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line, line


def test_eval_of_an_adapter_is_that_of_the_merged_model(tmp_path: Path, made: Path) -> None:
    cells = []
    for name, target in (("a", made / "adapter"), ("b", made)):
        out = tmp_path / f"{name}.json"
        words = [
            "eval",
            target,
            "--task",
            "letters",
            "--problems",
            "3",
            "--k",
            "2",
            "--max-tokens",
            "24",
            "--answer",
            "8",
        ]
        assert ponder(*words, "--sampler", "transformers", "--no-think", "--out", out) == 0
        (cell,) = json.loads(out.read_text())["cells"]
        assert cell.pop("model") == str(target)
        chains = (tmp_path / f"{name}.samples.jsonl.zst").read_bytes()
        cells.append((cell, len(chains) > 0))
    assert cells[0] == cells[1]
