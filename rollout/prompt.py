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

Shot: TypeAlias = tuple[Prompt, str]
"""A worked example: a prompt, and a response that is correct."""

END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endofturn|>")
TAIL = 16  # ids at a prompt's end that are searched for a think tag: more than any spelling of one takes


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

    `stop_ids` end a chain; `vocab_size` is the model's number of embeddings, where it is known.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        think: bool,
        system_prompt: str | None = None,
        stop_ids: Iterable[int],
        vocab_size: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.think = think
        self.system_prompt = system_prompt
        self.stop_ids = tuple(dict.fromkeys(stop_ids))
        self._vocab_size = vocab_size
        self._silent = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id} - {None}
        if not self.stop_ids:
            raise BadInput("the model names no stop token: set eos_token in tokenizer_config.json")
        if system_prompt is not None and tokenizer.chat_template is None:
            raise BadInput("model.system_prompt needs a chat template, and the tokenizer has none; remove it")
        # Tags that are tokens stand alone; as plain text they stand on lines of their own, as models write them.
        vocab = tokenizer.get_vocab()
        self._close_id: int | None = vocab[CLOSE] if OPEN in vocab and CLOSE in vocab else None
        self.open_ids: list[int] = []
        self.close_ids: list[int] = []
        if self._close_id is not None:
            self.open_ids, self.close_ids = [vocab[OPEN]], [self._close_id]
        elif think:
            self.open_ids, self.close_ids = self._checked_ids(f"{OPEN}\n"), self._checked_ids(f"\n{CLOSE}\n")

    @classmethod
    def load(cls, path: str | Path, *, think: bool, system_prompt: str | None = None) -> Self:
        """The template of a model directory, with all of its stop ids. Raises BadInput."""
        tokenizer = load_tokenizer(path)
        config, generation = (read_json(Path(path) / name) for name in ("config.json", "generation_config.json"))
        stop_ids = find_stop_ids(tokenizer, config, generation)
        size = config.get("vocab_size")
        return cls(tokenizer, think=think, system_prompt=system_prompt, stop_ids=stop_ids, vocab_size=size)

    def encode(self, prompt: Prompt, style: Style = "cot", shots: Sequence[Shot] = ()) -> list[int]:
        """The prompt's ids, up to where the model goes on. Raises BadInput for text the model has no tokens for.

        `shots` come before it: as turns of the chat, or without a chat template as text, each followed by a blank line.
        """
        bos = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        if self.tokenizer.chat_template is not None:
            ids = self._encode_chat(_with_turns(prompt, shots), style)
        else:
            ids = bos + self._checked_ids("\n\n".join([*(f"{_plain(p)}\n{r}" for p, r in shots), _plain(prompt)]))
        ids = ids[len(bos) :] if ids[:2] == bos * 2 else ids  # the text or the chat template may bring its own
        ids += self._think_suffix(ids, style) if self.think else []
        if self._vocab_size is not None and max(ids, default=0) >= self._vocab_size:
            word = self.tokenizer.decode([max(ids)])
            raise BadInput(
                f"the prompt has tokens the model lacks: {word!r} is beyond its {self._vocab_size} embeddings"
            )
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
        start = end - chain.prompt_len
        before = self._decode(chain.response_ids[:start]).partition(CLOSE)[0].rstrip()
        while start > 0 and len(self._decode(chain.response_ids[:start])) > len(before):
            start -= 1
        return chain.prompt_len + start

    def unclosed(self, chain: Chain) -> bool:
        """Whether the chain ended inside a thinking block."""
        return self.think and after_thinking(self.response_text(chain)) is None

    def response_text(self, chain: Chain) -> str:
        """What verifiers read: the text after the prompt, without the final stop token.

        It starts with the open tag where the prompt opened the thinking; special tokens stay, but for pad, bos and eos.
        """
        ids = chain.response_ids
        if ids and ids[-1] in self.stop_ids:
            ids = ids[:-1]
        opened = self.opened(chain.token_ids[: chain.prompt_len])
        return self._decode([*(self.open_ids if opened else ()), *(i for i in ids if i not in self._silent)])

    def _encode_chat(self, messages: list[Message], style: Style) -> list[int]:
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
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _think_suffix(self, ids: list[int], style: Style) -> list[int]:
        tail = self._tail(ids)
        opened, closed = tail.endswith(OPEN), tail.endswith(CLOSE)
        if style != "direct":
            return [] if opened else self.open_ids
        return [] if closed else self.close_ids if opened else self.open_ids + self.close_ids

    def _tail(self, ids: list[int]) -> str:
        return self._decode(ids[-TAIL:]).rstrip()

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _checked_ids(self, text: str) -> list[int]:
        """Ids of a text, or BadInput naming what the tokenizer maps to its unknown token or silently drops."""
        try:
            ids = self.tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:  # `tokenizers` raises bare Exceptions for a word that is in no vocabulary
            raise BadInput(f"the prompt has tokens the model lacks: {text!r} ({error})") from None
        unknown = self.tokenizer.unk_token_id
        lost = sorted(_characters(text) - _characters(self._decode(ids)))
        if unknown is not None and unknown in ids and self.tokenizer.unk_token not in text:
            offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            lost = list(dict.fromkeys(text[a:b] for i, (a, b) in zip(ids, offsets, strict=True) if i == unknown))
        if lost:
            raise BadInput(f"the prompt has tokens the model lacks: {', '.join(map(repr, lost))}")
        return ids


def _with_turns(prompt: Prompt, shots: Sequence[Shot]) -> list[Message]:
    """The messages of a prompt, the worked examples between its system message and the rest."""
    own, turns = _messages(prompt), []
    for asked, response in shots:
        turns += [m for m in _messages(asked) if m["role"] != "system"]
        turns.append({"role": "assistant", "content": response})
    start = int(own[0]["role"] == "system")
    return own[:start] + turns + own[start:]


def _messages(prompt: Prompt) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _plain(prompt: Prompt) -> str:
    if not isinstance(prompt, str):
        raise BadInput("the prompt is chat messages, and the tokenizer has no chat template; use plain text")
    return prompt


def find_stop_ids(tokenizer: Any, *configs: dict[str, Any]) -> list[int]:
    """Every id that ends a turn: the tokenizer's eos, each file's eos_token_id, the chat template's end of turn."""
    vocab = tokenizer.get_vocab()
    found = [tokenizer.eos_token_id]
    for config in configs:
        ids = config.get("eos_token_id")
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


def _characters(text: str) -> set[str]:
    """The characters of a text that a tokenizer may not lose: without blanks, case and compatibility forms."""
    return {c for c in unicodedata.normalize("NFKC", text).casefold() if not c.isspace()}
