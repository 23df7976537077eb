"""Problems become ids, chains become text: chat templates, think tags, stop ids, direct and chain prompts."""

import json
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

from rewards.answer import CLOSE, OPEN, after_thinking
from rewards.errors import BadInput
from rewards.types import Message, Prompt
from rollout.types import Chain

Style: TypeAlias = Literal["cot", "direct", "fewshot"]
"""cot: the thinking block is opened in the prompt. direct: it is opened and closed there: the answer comes at once.
fewshot: as cot, behind worked examples."""

Shot: TypeAlias = tuple[Prompt, str]  # a worked example: a prompt, and a response that is correct

END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endofturn|>")


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a model directory (never the network then) or of an `org/name`. Raises BadInput."""
    local = Path(path).is_dir()
    if not local and (str(path).count("/") != 1 or str(path).startswith((".", "~"))):
        raise BadInput(f"{path}: no such model directory; model.path must hold config.json, tokenizer and weights")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=local)
    except Exception as error:  # a missing or broken tokenizer raises OSError, ValueError, KeyError or a bare Exception
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{path}: its tokenizer does not load; tokenizer.json missing or broken? ({reason})") from None


class Template:
    """How one model is asked and read: prompt ids in, text out, thinking found and closed.
    `stop_ids` end a chain; `vocab` is the model's number of embeddings, 0 = not known."""

    def __init__(
        self, tokenizer: Any, *, think: bool, stop_ids: Iterable[int], system_prompt: str | None = None, vocab: int = 0
    ) -> None:
        self.tokenizer, self.think, self.system_prompt = tokenizer, think, system_prompt
        self.stop_ids = tuple(dict.fromkeys(stop_ids))
        self._embeddings = vocab
        self._silent = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id} - {None}
        if not self.stop_ids:
            raise BadInput("the model names no stop token: set eos_token in tokenizer_config.json")
        if system_prompt is not None and tokenizer.chat_template is None:
            raise BadInput("model.system_prompt needs a chat template, and the tokenizer has none; remove it")
        # Tags that are tokens stand alone; as plain text they stand on lines of their own, as models write them.
        known = tokenizer.get_vocab()
        self._close_id: int | None = known[CLOSE] if OPEN in known and CLOSE in known else None
        self.open_ids, self.close_ids = list[int](), list[int]()
        if self._close_id is not None:
            self.open_ids, self.close_ids = [known[OPEN]], [self._close_id]
        elif think:
            self.open_ids, self.close_ids = self._checked_ids(f"{OPEN}\n"), self._checked_ids(f"\n{CLOSE}\n")

    @classmethod
    def load(cls, path: str | Path, *, think: bool, system_prompt: str | None = None) -> Self:
        """The template of a model directory, with all of its stop ids. Raises BadInput."""
        tokenizer = load_tokenizer(path)
        config, generation = (read_json(Path(path) / name) for name in ("config.json", "generation_config.json"))
        stop_ids = find_stop_ids(tokenizer, config, generation)
        vocab = config.get("vocab_size") or 0
        return cls(tokenizer, think=think, stop_ids=stop_ids, system_prompt=system_prompt, vocab=vocab)

    def encode(self, prompt: Prompt, style: Style = "cot", shots: Sequence[Shot] = ()) -> list[int]:
        """The prompt's ids, up to where the model goes on. Raises BadInput for text the model has no tokens for.
        `shots` come before it: as turns of the chat, or without a chat template as text, a blank line behind each."""
        bos = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        if self.tokenizer.chat_template is not None:
            ids = self._encode_chat(prompt, style, shots)
        elif isinstance(prompt, str) and all(isinstance(asked, str) for asked, _ in shots):
            ids = bos + self._checked_ids("\n\n".join([*(f"{asked}\n{answer}" for asked, answer in shots), prompt]))
        else:
            raise BadInput("the prompt is chat messages, and the tokenizer has no chat template; use plain text")
        ids = ids[len(bos) :] if ids[:2] == bos * 2 else ids  # the text or the chat template may bring its own
        tail = self._tail(ids)
        if self.think and style != "direct":
            ids += [] if tail.endswith(OPEN) else self.open_ids
        elif self.think and not tail.endswith(CLOSE):
            ids += self.close_ids if tail.endswith(OPEN) else self.open_ids + self.close_ids
        if 0 < self._embeddings <= max(ids, default=0):
            lost = f"{self.tokenizer.decode([max(ids)])!r} is beyond its {self._embeddings} embeddings"
            raise BadInput(f"the prompt has tokens the model lacks: {lost}")
        return ids

    def opened(self, prompt_ids: list[int]) -> bool:
        """Whether a prompt ends inside a thinking block."""
        return self.think and self._tail(prompt_ids).endswith(OPEN)

    def close_end(self, chain: Chain) -> int | None:
        """Index just behind the first close tag after the prompt, sampled or inserted; None while thinking goes on."""
        ids = chain.response_ids
        if self._close_id is not None:
            return chain.prompt_len + ids.index(self._close_id) + 1 if self._close_id in ids else None
        if CLOSE not in self._decode(ids):
            return None
        # A text tag may be spelt by any tokens: the shortest prefix whose text holds it.
        return chain.prompt_len + bisect_left(range(len(ids)), True, key=lambda n: CLOSE in self._decode(ids[:n]))

    def close_start(self, chain: Chain) -> int | None:
        """Index of the first token of that close tag; None while thinking goes on."""
        end = self.close_end(chain)
        if end is None or self._close_id is not None:
            return end and end - 1
        before = self._decode(chain.token_ids[chain.prompt_len : end]).partition(CLOSE)[0].rstrip()
        while end > chain.prompt_len and len(self._decode(chain.token_ids[chain.prompt_len : end])) > len(before):
            end -= 1
        return end

    def unclosed(self, chain: Chain) -> bool:
        """Whether the chain ended inside a thinking block."""
        return self.think and after_thinking(self.response_text(chain)) is None

    def response_text(self, chain: Chain) -> str:
        """What verifiers read: the text after the prompt, without the final stop token. It starts with the open tag
        where the prompt opened the thinking; special tokens stay, but for pad, bos and eos."""
        ids = chain.response_ids
        if ids and ids[-1] in self.stop_ids:
            ids = ids[:-1]
        opened = self.opened(chain.token_ids[: chain.prompt_len])
        return self._decode([*(self.open_ids if opened else ()), *(i for i in ids if i not in self._silent)])

    def _encode_chat(self, prompt: Prompt, style: Style, shots: Sequence[Shot]) -> list[int]:
        own, turns = _messages(prompt), list[Message]()
        for asked, response in shots:
            turns += [m for m in _messages(asked) if m["role"] != "system"]
            turns.append({"role": "assistant", "content": response})
        start = int(own[0]["role"] == "system")
        messages = own[:start] + turns + own[start:]  # the worked examples stand behind the system message
        if self.system_prompt is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        for message in messages:
            self._checked_ids(message["content"])
        thinking = self.think and style != "direct"  # read by templates that know it (Qwen3), else ignored
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
            )
        except Exception as error:  # templates are programs of the model's: they refuse roles in many ways
            raise BadInput(f"the chat template refuses the prompt: {' '.join(str(error).split())}") from None
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _tail(self, ids: list[int]) -> str:
        return self._decode(ids[-16:]).rstrip()  # more than any spelling of a think tag takes

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _checked_ids(self, text: str) -> list[int]:
        """Ids of a text, or BadInput naming what the tokenizer maps to its unknown token or silently drops."""
        try:
            ids = self.tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:  # `tokenizers` raises bare Exceptions for a word that is in no vocabulary
            raise BadInput(f"the prompt has tokens the model lacks: {text!r} ({error})") from None
        unknown = self.tokenizer.unk_token_id
        # What may not be lost: characters without blanks, case and compatibility forms.
        asked, kept = (set(unicodedata.normalize("NFKC", t).casefold()) for t in (text, self._decode(ids)))
        lost = sorted(c for c in asked - kept if not c.isspace())
        if unknown is not None and unknown in ids and self.tokenizer.unk_token not in text:
            offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            lost = list(dict.fromkeys(text[a:b] for i, (a, b) in zip(ids, offsets, strict=True) if i == unknown))
        if lost:
            raise BadInput(f"the prompt has tokens the model lacks: {', '.join(map(repr, lost))}")
        return ids


def _messages(prompt: Prompt) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def find_stop_ids(tokenizer: Any, *configs: dict[str, Any]) -> list[int]:
    """Every id that ends a turn: the tokenizer's eos, each file's eos_token_id, the chat template's end of turn."""
    vocab = tokenizer.get_vocab()
    found = [tokenizer.eos_token_id]
    for ids in (config.get("eos_token_id") for config in configs):
        found += ids if isinstance(ids, list) else [ids]
    found += [vocab[token] for token in END_OF_TURN if token in vocab and token in str(tokenizer.chat_template or "")]
    return [stop for stop in dict.fromkeys(found) if stop is not None]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model directory; {} where there is no such file, BadInput where it is broken."""
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} is not readable JSON: {error}") from None
    if not isinstance(data, dict):
        raise BadInput(f"{path} must hold a JSON object, not {type(data).__name__}")
    return data
