"""Tiny random models that vLLM and transformers both load, with a byte-level tokenizer: what tests train and serve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIALS = ("<pad>", "<bos>", "<eos>", "<think>", "</think>")  # ids 256 to 260, behind the 256 bytes
VOCAB_SIZE = 256 + len(SPECIALS)
ARCHITECTURES = ("llama", "qwen2", "qwen3")


def tiny_model(
    path: Path,
    arch: str = "llama",
    tied: bool = True,
    seed: int = 0,
    weights: bool = True,
    context: int = 1024,
    **overrides: Any,
) -> Path:
    """Write a model directory of about 0.4M parameters to `path` (2 layers, 128 wide, heads of 64: vLLM's CPU attention
    wants a multiple of 32) and return it. `overrides` are fields of the transformers config."""
    from transformers import AutoConfig

    shape: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": context,
        "tie_word_embeddings": tied,
        "pad_token_id": 256,
        "bos_token_id": 257,
        "eos_token_id": 258,
        "dtype": "float32",
    }
    config = AutoConfig.for_model(arch, **(shape | overrides))
    if weights:
        _random_model(config, seed).save_pretrained(path)
    else:
        config.architectures = [_model_class(config).__name__]
        config.save_pretrained(path)
    byte_tokenizer(context).save_pretrained(path)
    return path


def byte_tokenizer(context: int = 1024) -> PreTrainedTokenizerFast:
    """Id = byte, then the specials: encodes and decodes any UTF-8 text without loss, and adds nothing of its own."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(vocab={char: byte for byte, char in enumerate(_byte_chars())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    # The think tags are no "special" tokens, as in Qwen3: decoding without special tokens must keep them.
    tokenizer.add_tokens([AddedToken(s, special="think" not in s, normalized=False) for s in SPECIALS])
    pad, bos, eos = SPECIALS[:3]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def _byte_chars() -> list[str]:
    """The printable character that stands for each byte in GPT-2's byte-level alphabet, [256]."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(rest)) for byte in range(256)]


def _model_class(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM._model_mapping[type(config)]


def _random_model(config: Any, seed: int) -> Any:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _model_class(config)(config)
