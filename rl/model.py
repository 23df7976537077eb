"""Loading and saving the policy: local Hugging Face directories, safetensors only, every load names its dtype."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from rewards.errors import BadInput
from rl import attention as varlen
from rl.batch import MicroBatch
from rl.logprobs import CHUNK_ELEMENTS, head_logprobs
from rollout.prompt import load_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FOREIGN_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack")
COPIED_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model",
                "chat_template*", "generation_config.json")  # fmt: skip
"""What belongs to a model directory besides its config and its weights."""


def load_policy(
    path: str | Path, dtype: str, seed: int, attention: str = varlen.NAME, fresh: bool = False
) -> tuple[PreTrainedModel, bool]:
    """The model of a local directory and whether its weights were loaded (else they are random from `seed`).

    `fresh` leaves weights that are there unread.

    Raises BadInput where the directory, its config or its tokenizer is missing, or a file is broken.
    """
    path = Path(path)
    config = load_config(path)
    load_tokenizer(path)
    for name, value in config.to_dict().items():
        if ("dropout" in name or name.endswith("_pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)  # sampler and learner must compute the same function
    varlen.register()
    loaded = has_weights(path) and not fresh
    if loaded:
        model = _load_weights(path, config, DTYPES[dtype], attention)
    else:
        model = _random_weights(config, seed, attention)
        nn.Module.to(model, DTYPES[dtype])
    if attention == varlen.NAME:
        _check_plain_head(model)
    return model, loaded


def load_config(path: str | Path) -> Any:
    """The transformers config of a local model directory, or BadInput."""
    path = Path(path)
    if not path.is_dir():
        raise BadInput(f"model.path={path}: no such directory; give a local Hugging Face model directory")
    if not (path / "config.json").is_file():
        raise BadInput(f"model.path={path} has no config.json; give a local Hugging Face model directory")
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path / 'config.json'} can't be read: {_one_line(error)}") from None


def has_weights(path: str | Path) -> bool:
    """Whether a model directory holds safetensors.

    Raises BadInput where it holds weights of another kind only: they must not be taken for "no weights".
    """
    path = Path(path)
    if any(path.glob("*.safetensors")):
        return True
    foreign = sorted(file.name for pattern in FOREIGN_WEIGHTS for file in path.glob(pattern))
    if foreign:
        raise BadInput(f"model.path={path} holds {foreign[0]} but no safetensors; convert its weights to safetensors")
    return False


def save_model(model: PreTrainedModel, tokenizer_source: str | Path, directory: str | Path) -> None:
    """Write a directory that plain transformers and vLLM load: safetensors and config, and the tokenizer files and
    generation_config of the source, copied as they are.

    Raises BadInput where the directory can't be written (disk full).
    """
    directory = Path(directory)
    generation = model.generation_config
    # A generation_config that transformers finds inconsistent would stop the save; the original is copied below.
    model.generation_config = GenerationConfig.from_model_config(model.config)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _quiet():
            model.save_pretrained(directory)
        for pattern in COPIED_FILES:
            for file in Path(tokenizer_source).glob(pattern):
                if file.is_file() and file.suffix != ".safetensors":
                    shutil.copyfile(file, directory / file.name)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"can't save the model to {directory}: {_one_line(error)}; free some space") from None
    finally:
        model.generation_config = generation


def materialise(path: str | Path, seed: int, dtype: str, out_dir: str | Path) -> Path:
    """Save the random initialisation of a directory without weights, so that a server can load it; returns out_dir."""
    model, _ = load_policy(path, dtype, seed)
    save_model(model, path, out_dir)
    return Path(out_dir)


def policy_logprobs(
    model: PreTrainedModel, micro: MicroBatch, targets: Tensor, temperature: float, chunk_elements: int = CHUNK_ELEMENTS
) -> tuple[Tensor, Tensor]:
    """Logprobs and entropies of a micro-batch's rows, [N] and [N]; targets [N] on the model's device.

    The body runs over all T positions, the head only where a sampled token is predicted.
    """
    plan = varlen.VarlenPlan(micro.cu_seq_lens, micro.lengths)
    body = model.base_model(input_ids=micro.input_ids, position_ids=micro.position_ids, use_cache=False, varlen=plan)
    hidden = body.last_hidden_state[0].index_select(0, micro.predictors)
    head = model.get_output_embeddings()
    return head_logprobs(hidden, head.weight, targets, temperature, getattr(head, "bias", None), chunk_elements)


def _load_weights(path: Path, config: Any, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    try:
        with _quiet():
            answer: Any = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise BadInput(f"the weights in {path} can't be loaded: {_one_line(error)}") from None
    model, info = answer
    missing = sorted(info["missing_keys"])
    if missing:
        raise BadInput(f"the weights in {path} lack {len(missing)} tensors, the first is {missing[0]}; save them again")
    return model


def _random_weights(config: Any, seed: int, attention: str) -> PreTrainedModel:
    """Initialised in fp32 on the CPU whatever comes after, so that one seed means one model."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and load reports: what is wrong becomes one line of ours."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@torch.no_grad()
def _check_plain_head(model: PreTrainedModel) -> None:
    """Some families scale or cap their logits after the head; `policy_logprobs` would be wrong for them."""
    ids = torch.arange(3).unsqueeze(0)
    micro = MicroBatch(ids, ids, torch.tensor([0, 3], dtype=torch.int32), [3], torch.arange(3), torch.arange(3))
    mine, _ = policy_logprobs(model, micro, ids[0], 1.0)
    plan = varlen.VarlenPlan(micro.cu_seq_lens, micro.lengths)
    logits = model(input_ids=ids, position_ids=ids, use_cache=False, varlen=plan).logits
    theirs = logits[0].double().log_softmax(-1).gather(1, ids.T).squeeze(1)
    if not torch.allclose(mine.double(), theirs, atol=1e-4 if model.dtype != torch.bfloat16 else 0.1):
        raise BadInput(f"{model.config.model_type} changes its logits after the head, which the learner can't train")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
