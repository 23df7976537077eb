"""Loading and saving the policy: local Hugging Face directories, safetensors only, every load names its dtype.
With LoRA (Hu et al. 2021) the adapters lie on the layers of a plain transformers model, through peft, so that nothing
else has to know: what trains is what has `requires_grad`, and what is pushed or saved is merged by `rl.sync`."""

import copy
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from rewards.errors import BadInput, one_line
from rl import attention as varlen
from rl.batch import MicroBatch
from rl.config import LoraConfig
from rl.flops import is_adapter
from rl.logprobs import head_logprobs
from rl.parallel import ONE, Ranks
from rl.sync import ModuleSource, hf_name, write_adapter
from rollout.prompt import load_tokenizer, read_json

# What belongs to a model directory besides its config and its weights
COPIED_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model",
                "chat_template*", "generation_config.json")  # fmt: skip
# Directory of the LoRA adapter, in peft's own format, in a saved model, and the file that makes it one
ADAPTER, PEFT_CONFIG = "adapter", "adapter_config.json"
# Of adapters that others made: what would be more than products added to weights, or change the base
UNMERGED = {"use_dora", "modules_to_save", "target_parameters", "lora_bias", "trainable_token_indices",
            "layer_replication", "alora_invocation_tokens", "use_bdlora", "use_qalora"}  # fmt: skip

transformers_logging.set_verbosity_error()  # what is wrong becomes one line of ours
transformers_logging.disable_progress_bar()


def load_policy(
    path: str | Path, dtype: str, seed: int, attention: str = varlen.NAME, fresh: bool = False
) -> tuple[PreTrainedModel, bool]:
    """The model of a local directory, and whether its weights were loaded: without any, or `fresh`, they are random.
    Raises BadInput where the directory, its config or its tokenizer is missing, or a file is broken."""
    config = load_config(path)
    load_tokenizer(path)
    for name, value in config.to_dict().items():
        if ("dropout" in name or name.endswith("_pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)  # sampler and learner must compute the same function
    loaded = has_weights(path) and not fresh
    if loaded:
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                path, config=config, dtype=getattr(torch, dtype), attn_implementation=attention, use_safetensors=True,
                local_files_only=True, output_loading_info=True,
            )  # fmt: skip
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise BadInput(f"the weights in {path} can't be loaded: {one_line(str(error))}") from None
        if lost := sorted(info["missing_keys"]):
            raise BadInput(f"the weights in {path} lack {len(lost)} tensors, the first is {lost[0]}; save them again")
    else:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            # In fp32 on the CPU whatever comes after, so that one seed means one model.
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
        nn.Module.to(model, getattr(torch, dtype))
    if attention == varlen.NAME:
        _check_plain_head(model)
    return model, loaded


def load_config(path: str | Path) -> Any:
    """The transformers config of a local model directory, or BadInput."""
    file = Path(path) / "config.json"
    if not file.is_file():
        raise BadInput(f"model.path={path}: no such directory with a config.json; give a Hugging Face model's")
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{file} can't be read: {one_line(str(error))}") from None


def has_weights(path: str | Path) -> bool:
    """Whether it holds safetensors. Raises BadInput where it holds only other weights, which are not "no weights"."""
    path = Path(path)
    if any(path.glob("*.safetensors")):
        return True
    foreign = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack")
    for file in (file for pattern in foreign for file in path.glob(pattern)):
        raise BadInput(f"model.path={path} holds {file.name} but no safetensors; convert its weights to safetensors")
    return False


def save_model(model: PreTrainedModel, tokenizer_source: str | Path, directory: str | Path, ranks: Ranks = ONE) -> None:
    """Write a directory that plain transformers and vLLM load: safetensors and config, and the tokenizer files and
    generation_config of the source, copied as they are. LoRA adapters are merged in and, where they train, saved
    alone in `adapter/`. Raises BadInput where the directory can't be written (disk full)."""
    directory = Path(directory)
    generation = model.generation_config
    # A generation_config that transformers finds inconsistent would stop the save; the original is copied below.
    model.generation_config = GenerationConfig.from_model_config(model.config)
    merged = None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        adapters = [p for name, p in model.named_parameters() if is_adapter(name)]
        source = ModuleSource(model, str(model.dtype).removeprefix("torch."), ranks=ranks)
        if adapters and adapters[0].requires_grad:
            (directory / ADAPTER).mkdir(exist_ok=True)
            write_adapter(source, directory / ADAPTER)
        if adapters or ranks.sharded:
            merged = {name: tensor.cpu() for name, tensor in source.tensors()}
        model.save_pretrained(directory, state_dict=merged)
        for pattern in COPIED_FILES:
            for file in Path(tokenizer_source).glob(pattern):
                if file.is_file() and directory.resolve() != file.parent.resolve():
                    shutil.copyfile(file, directory / file.name)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"can't save the model to {directory}: {one_line(str(error))}; free some space") from None
    finally:
        model.generation_config = generation


def policy_logprobs(
    model: PreTrainedModel, micro: MicroBatch, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Logprobs and entropies of a micro-batch's rows, [N] and [N]; targets [N] on the model's device. The body runs
    over all T positions, the head only where a sampled token is predicted."""
    head, hidden = model.get_output_embeddings(), predictor_states(model.base_model, micro)
    return head_logprobs(hidden, head.weight, targets, temperature, getattr(head, "bias", None))


def predictor_states(body: PreTrainedModel, micro: MicroBatch) -> Tensor:
    """What a model's body makes of the positions that predict a micro-batch's rows, [N, H]."""
    out = body(input_ids=micro.input_ids, position_ids=micro.position_ids, use_cache=False, varlen=micro)
    return out.last_hidden_state[0].index_select(0, micro.predictors)


class Scorer(nn.Module):
    """A model whose forward pass gives logprobs: what DDP and FSDP2 wrap, since they see `forward` alone."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, micro: MicroBatch, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        logprobs, entropy = policy_logprobs(self.model, micro, targets, temperature)
        return logprobs.clone(), entropy  # FSDP2 hangs its hook on the output, which a view would lose


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A second model over the same tensors, to be taken before adapters are put on: the reference, at no memory."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def add_adapter(
    model: PreTrainedModel, lora: LoraConfig, seed: int, base: str, checkpoint: str | Path | None = None
) -> None:
    """Freeze a model and put fp32 LoRA adapters on it: of a checkpoint, else as peft starts them, from `seed`.
    `base` is the name of the model under the adapter, for the adapter's files. Raises BadInput for a target that can't
    be adapted, or a checkpoint's adapter of another shape."""
    import peft

    names = {name.rpartition(".")[2] for name in adapted_layers(model, lora)}
    wanted = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, bias="none",
        target_modules=sorted(names) if lora.targets == "all-linear" else list(lora.targets),
        task_type="CAUSAL_LM", base_model_name_or_path=base,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(wanted, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if checkpoint is not None:
        _load_adapter(model, Path(checkpoint) / ADAPTER)


def _load_adapter(model: PreTrainedModel, directory: Path) -> None:
    """Give a model's adapters those of a directory, in fp32. Raises BadInput if it holds others."""
    try:
        saved = load_file(directory / "adapter_model.safetensors")
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{directory} can't be read: {one_line(str(error))}; was the run made without LoRA?") from None
    own = {hf_name(name): p for name, p in model.named_parameters() if is_adapter(name)}
    if {name: t.shape for name, t in own.items()} != {name: t.shape for name, t in saved.items()}:
        raise BadInput(f"{directory} holds other adapters than model and settings ask for; give those it was made with")
    for name, parameter in own.items():
        parameter.data = saved[name].to(parameter.device, torch.float32)


def adapted_layers(model: Any, lora: LoraConfig) -> dict[str, nn.Linear]:
    """The linear layers that `model.lora.targets` names, by their full names; the model may lie on the meta device.
    Raises BadInput for a target that is not there, is no linear layer, or is the head or the embedding."""
    head = model.get_output_embeddings()
    plain = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    if lora.targets == "all-linear":
        return plain
    found: dict[str, nn.Linear] = {}
    for target in lora.targets:
        named = [name for name, _ in model.named_modules() if f".{name}".endswith(f".{target}")]
        if not named:
            known = ", ".join(sorted({name.rpartition(".")[2] for name in plain}))
            raise BadInput(f"model.lora.targets: the model has no {target!r}; choose among {known}, or all-linear")
        if refused := [name for name in named if name not in plain]:
            raise BadInput(f"model.lora.targets: {refused[0]} is no linear layer of the model's body; leave it out")
        found |= {name: plain[name] for name in named}
    return found


def merge_adapter(path: Path, out: Path, base: Path | None = None) -> None:
    """Write the base of a LoRA adapter in peft's format (or of a checkpoint's) with it merged in, in the base's dtype:
    a model directory like any other. Raises BadInput for what can't be merged, by name."""
    import peft

    if out.exists():
        raise BadInput(f"{out} is there already; name a directory that isn't")
    adapter = path if (path / PEFT_CONFIG).is_file() else path / ADAPTER
    if not (said := read_json(adapter / PEFT_CONFIG)):
        raise BadInput(f"{path} has no {PEFT_CONFIG}; give a LoRA adapter, or a checkpoint (step-N) that has one")
    neutral = {"peft_type": ("LORA",), "bias": (None, "none"), "init_lora_weights": (None, True, False, "gaussian")}
    for key, value in said.items():
        if value not in neutral[key] if key in neutral else value and key in UNMERGED:
            raise BadInput(f"{adapter} has {key}={value!r}, which can't be merged into a plain model")
    found = base or Path(str(said.get("base_model_name_or_path")))
    if not found.is_dir() or not has_weights(found):
        raise BadInput(f"{found}, base of {adapter}, has no weights here; ponder merge {path} OUT --base DIR")
    model, _ = load_policy(found, str(load_config(found).dtype or "float32").removeprefix("torch."), 0, "sdpa")
    try:
        with warnings.catch_warnings(action="ignore"):  # of a tied head, which is refused below
            peft.inject_adapter_in_model(peft.LoraConfig.from_pretrained(str(adapter)), model)
    except (ValueError, TypeError, RuntimeError) as error:
        raise BadInput(f"{adapter} does not fit {found}: {one_line(str(error))}") from None
    if any(hasattr(layer, "base_layer") for layer in (model.get_input_embeddings(), model.get_output_embeddings())):
        raise BadInput(f"{adapter} adapts the embedding or the output head, often one tensor, which can't be merged")
    _load_adapter(model, adapter)
    save_model(model.requires_grad_(False), found, out)


@torch.no_grad()
def _check_plain_head(model: PreTrainedModel) -> None:
    """Some families scale or cap their logits after the head; `policy_logprobs` would be wrong for them."""
    ids = torch.arange(3).unsqueeze(0)
    micro = MicroBatch(torch.tensor([0, 3], dtype=torch.int32), [3], ids, ids, torch.arange(3), torch.arange(3))
    mine, _ = policy_logprobs(model, micro, ids[0], 1.0)
    logits = model(input_ids=ids, position_ids=ids, use_cache=False, varlen=micro).logits
    theirs = logits[0].double().log_softmax(-1).gather(1, ids.T).squeeze(1)
    if not torch.allclose(mine.double(), theirs, atol=1e-4 if model.dtype != torch.bfloat16 else 0.1):
        raise BadInput(f"{model.config.model_type} changes its logits after the head, which the learner can't train")
