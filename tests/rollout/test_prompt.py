"""Prompts to ids and chains to text: bos, tags, templates, stop ids, and what the model has no tokens for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rewards.errors import BadInput
from rollout.chain import bare_chain, merge
from rollout.prompt import Shot, Template, find_stop_ids, load_tokenizer
from rollout.types import Chain, Completion
from tests.fakes import WORDS, word_tokenizer
from tests.models import byte_tokenizer, tiny_model

BOS, EOS, OPEN, CLOSE = 1, 2, 3, 4
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }} <|im_end|> {% endfor %}"
ASSISTANT = "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
QWEN3 = CHATML + ASSISTANT + "{% if not enable_thinking %} <think> </think>{% endif %}"
R1 = "<bos> {% for m in messages %}{{ m.content }} {% endfor %}<think>\n"


def words(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def template(**options: Any) -> Template:
    settings: dict[str, Any] = {"think": True, "stop_ids": (EOS,)} | options
    return Template(word_tokenizer(), **settings)


def chat_template(source: str, **options: Any) -> Template:
    tokenizer = word_tokenizer(
        [*WORDS, "<|im_start|>user", "<|im_start|>assistant", "<|im_start|>system", "<|im_end|>"]
    )
    tokenizer.chat_template = source
    settings: dict[str, Any] = {"think": True, "stop_ids": (EOS,)} | options
    return Template(tokenizer, **settings)


def a_chain(prompt: list[int], response: list[int]) -> Chain:
    done = Completion(response, [-1.0] * len(response), "stop", 0)
    return merge(bare_chain("c", "p", prompt), [], done)


class TestEncode:
    def test_the_word_level_prompt_opens_its_thinking(self) -> None:
        assert template().encode("2 13 10 : 5") == words("<bos> 2 13 10 : 5 <think>")
        assert template().encode("2 13 10 : 5", "direct") == words("<bos> 2 13 10 : 5 <think> </think>")
        assert template(think=False).encode("2 13 10 : 5", "direct") == words("<bos> 2 13 10 : 5")

    def test_bos_and_tag_already_there_stay_single(self) -> None:
        assert template().encode("<bos> 2 : 5 <think>") == words("<bos> 2 : 5 <think>")
        assert template().encode("<bos> 2 : 5 <think>", "direct") == words("<bos> 2 : 5 <think> </think>")

    def test_no_bos_where_the_tokenizer_has_none(self) -> None:
        plain = Template(word_tokenizer(bos_token=None), think=False, stop_ids=(EOS,))
        assert plain.encode("2 : 5") == words("2 : 5")

    def test_bytes_without_thinking_are_as_they_are(self) -> None:
        plain = Template(byte_tokenizer(), think=False, stop_ids=(258,))
        assert plain.encode("aé") == [257, 97, 0xC3, 0xA9]

    def test_text_tags_are_spelt_out_where_the_tokenizer_has_none(self) -> None:
        tagless = Template(tagless_bytes(), think=True, stop_ids=(258,))
        assert bytes(tagless.encode("a")[1:]) == b"a<think>\n"
        assert bytes(tagless.encode("a", "direct")[1:]) == b"a<think>\n\n</think>\n"
        assert bytes(tagless.close_ids) == b"\n</think>\n"

    def test_text_becomes_a_user_message(self) -> None:
        chat = chat_template(CHATML + ASSISTANT, system_prompt="5 !")
        expected = "<|im_start|>system 5 ! <|im_end|> <|im_start|>user 2 + 2 <|im_end|> <|im_start|>assistant <think>"
        assert chat.tokenizer.decode(chat.encode("2 + 2")) == expected
        own = [{"role": "system", "content": "4 !"}, {"role": "user", "content": "2"}]
        assert "4 !" in chat.tokenizer.decode(chat.encode(own))
        assert "5 !" not in chat.tokenizer.decode(chat.encode(own))

    def test_templates_that_know_thinking_are_left_to_it(self) -> None:
        chat = chat_template(QWEN3)
        assert chat.tokenizer.decode(chat.encode("2", "direct")).endswith("assistant <think> </think>")
        assert chat.tokenizer.decode(chat.encode("2", "cot")).endswith("assistant <think>")
        off = chat_template(QWEN3, think=False)
        assert off.tokenizer.decode(off.encode("2", "cot")).endswith("assistant <think> </think>")

    def test_a_template_that_opens_by_itself_opens_once(self) -> None:
        chat = chat_template(R1)
        assert chat.encode("2") == words("<bos> 2 <think>")
        assert chat.encode("2", "direct") == words("<bos> 2 <think> </think>")

    def test_a_doubled_bos_becomes_one(self) -> None:
        assert chat_template("<bos> " + R1, think=False).encode("2") == words("<bos> 2 <think>")


class TestShots:
    SHOTS = (("1 + 1", "2"), ("2 + 2", "4"))

    def test_text_puts_them_before_the_prompt(self) -> None:
        assert template().encode("3 + 3", "fewshot", self.SHOTS) == words("<bos> 1 + 1 2 2 + 2 4 3 + 3 <think>")
        plain = Template(byte_tokenizer(), think=False, stop_ids=(258,))
        assert bytes(plain.encode("c", "fewshot", [("a", "1"), ("b", "2")])[1:]) == b"a\n1\n\nb\n2\n\nc"

    def test_none_is_the_chain_prompt(self) -> None:
        assert template().encode("3 + 3", "fewshot") == template().encode("3 + 3")

    def test_chat_has_them_as_turns_behind_the_system_message(self) -> None:
        chat = chat_template(CHATML + ASSISTANT, system_prompt="5 !")
        told = [{"role": "system", "content": "4 !"}, {"role": "user", "content": "2"}]
        turn = "<|im_start|>user {} <|im_end|> <|im_start|>assistant {} <|im_end|>"
        end = "<|im_start|>user 3 + 3 <|im_end|> <|im_start|>assistant <think>"
        shots: list[Shot] = [("1 + 1", "2"), (told, "6")]
        expected = f"<|im_start|>system 5 ! <|im_end|> {turn.format('1 + 1', 2)} {turn.format(2, 6)} {end}"
        assert chat.tokenizer.decode(chat.encode("3 + 3", "fewshot", shots)) == expected
        own = chat.tokenizer.decode(chat.encode(told, "fewshot", [("1 + 1", "2")]))
        assert own.startswith(f"<|im_start|>system 4 ! <|im_end|> {turn.format('1 + 1', 2)} <|im_start|>user 2")

    def test_what_the_model_cannot_read_is_refused(self) -> None:
        with pytest.raises(BadInput, match="777"):
            template().encode("2", "fewshot", [("777", "2")])
        with pytest.raises(BadInput, match="no chat template"):
            template().encode("2", "fewshot", [([{"role": "user", "content": "2"}], "2")])


class TestRefusals:
    def test_words_outside_the_vocabulary(self) -> None:
        with pytest.raises(BadInput, match=r"tokens the model lacks.*777"):
            template().encode("2 777")

    def test_words_that_become_unk_are_named(self) -> None:
        tokenizer = word_tokenizer(unk="<unk>")
        with pytest.raises(BadInput, match=r"tokens the model lacks: '777', 'x'$"):
            Template(tokenizer, think=True, stop_ids=(EOS,)).encode("2 777 + x + 777")

    def test_characters_that_are_dropped_are_named(self) -> None:
        with pytest.raises(BadInput, match=r"tokens the model lacks: 'z', 'é'$"):
            Template(dropping_tokenizer(), think=False, stop_ids=(0,)).encode("AbéZ ab")

    def test_ids_beyond_the_embeddings(self) -> None:
        with pytest.raises(BadInput, match="'49' is beyond its 60 embeddings"):
            template(vocab=60).encode("49")

    def test_a_message_the_model_cannot_read(self) -> None:
        with pytest.raises(BadInput, match="777"):
            chat_template(CHATML).encode([{"role": "user", "content": "777"}])

    def test_messages_and_system_prompt_need_a_chat_template(self) -> None:
        with pytest.raises(BadInput, match="no chat template; use plain text"):
            template().encode([{"role": "user", "content": "2"}])
        with pytest.raises(BadInput, match="system_prompt needs a chat template"):
            template(system_prompt="2")

    def test_the_chat_template_s_own_refusal(self) -> None:
        with pytest.raises(BadInput, match="refuses the prompt: no such role"):
            chat_template("{{ raise_exception('no such role') }}").encode("2")

    def test_no_stop_token(self) -> None:
        with pytest.raises(BadInput, match="no stop token"):
            template(stop_ids=())


class TestReading:
    def test_text_of_a_chain(self) -> None:
        chain = a_chain(words("<bos> 2 : 5 <think>"), words("5 ! </think> 5 <eos>"))
        assert template().response_text(chain) == "<think> 5 ! </think> 5"
        direct = a_chain(words("<bos> 2 : 5 <think> </think>"), words("5 <eos>"))
        assert template().response_text(direct) == "5"

    def test_only_a_final_stop_token_leaves_and_pad_bos_eos_are_silent(self) -> None:
        stopping = template(think=False, stop_ids=(EOS, 9))
        chain = a_chain(words("<bos> 2"), [9, 20, 0, 1, 2, 21, 9])
        assert stopping.response_text(chain) == f"{WORDS[9]} {WORDS[20]} {WORDS[21]}"

    def test_close_of_one_token(self) -> None:
        chain = a_chain(words("<bos> <think> </think> <think>"), words("5 </think> 5 </think>"))
        assert template().close_end(chain) == 6
        assert template().close_start(chain) == 5
        assert template().close_start(a_chain(words("<bos> <think>"), words("5 5"))) is None
        assert template().close_end(a_chain(words("<bos> <think>"), words("5 5"))) is None
        assert template().close_end(a_chain(words("<bos> <think>"), [])) is None

    @pytest.mark.parametrize("after", ["", "\n", " the answer </think>"])
    def test_close_spelt_in_bytes(self, after: str) -> None:
        tagless = Template(tagless_bytes(), think=True, stop_ids=(258,))
        prompt = tagless.encode("a")
        chain = a_chain(prompt, list(f"é </thin </think>{after}".encode()))
        end = tagless.close_end(chain)
        assert end is not None
        assert bytes(chain.token_ids[len(prompt) : end]) == "é </thin </think>".encode()
        assert bytes(chain.token_ids[len(prompt) : tagless.close_start(chain)]) == "é </thin".encode()

    def test_no_close_spelt_in_bytes(self) -> None:
        tagless = Template(tagless_bytes(), think=True, stop_ids=(258,))
        assert tagless.close_end(a_chain(tagless.encode("a"), list(b"</thin k>"))) is None

    def test_unclosed(self) -> None:
        prompt = words("<bos> 2 : 5 <think>")
        assert template().unclosed(a_chain(prompt, words("5 <eos>")))
        assert not template().unclosed(a_chain(prompt, words("5 </think> 5 <eos>")))
        assert template().unclosed(a_chain(prompt, words("5 </think> <think> 5 <eos>")))
        assert not template().unclosed(a_chain(words("<bos> <think> </think>"), words("5 <eos>")))
        assert not template(think=False).unclosed(a_chain(prompt, words("5 <eos>")))

    def test_opened(self) -> None:
        assert template().opened(words("<bos> 2 <think>"))
        assert not template().opened(words("<bos> 2 <think> </think>"))
        assert not template(think=False).opened(words("<bos> 2 <think>"))


class TestLoading:
    def test_all_stop_ids_of_a_directory(self, tmp_path: Path) -> None:
        path = tiny_model(tmp_path, weights=False)
        (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [258, 7]}))
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | {"eos_token_id": 9}))
        loaded = Template.load(path, think=True)
        assert loaded.stop_ids == (258, 9, 7)
        assert loaded.encode("a") == [257, 97, 259]

    def test_end_of_turn_counts_where_the_chat_template_uses_it(self) -> None:
        used = chat_template(CHATML)
        assert find_stop_ids(used.tokenizer) == [EOS, len(used.tokenizer) - 1]
        assert find_stop_ids(chat_template(R1).tokenizer) == [EOS]

    def test_what_is_missing_or_broken_is_one_line(self, tmp_path: Path) -> None:
        for name in (tmp_path / "none", "configs/models/none", "./none", "none"):
            with pytest.raises(BadInput, match="no such model directory"):
                load_tokenizer(name)
        with pytest.raises(BadInput, match="tokenizer does not load"):
            load_tokenizer(tmp_path)
        path = tiny_model(tmp_path / "m", weights=False)
        (path / "tokenizer.json").write_text("{broken")
        with pytest.raises(BadInput, match="tokenizer does not load") as caught:
            load_tokenizer(path)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(("text", "said"), [("{", "not readable JSON"), ("[]", "must hold a JSON object")])
    def test_a_broken_config(self, tmp_path: Path, text: str, said: str) -> None:
        path = tiny_model(tmp_path, weights=False)
        (path / "generation_config.json").write_text(text)
        with pytest.raises(BadInput, match=said):
            Template.load(path, think=True)


def test_round_trip_of_a_sampled_chain() -> None:
    """What was sampled is read back as text whatever the ids: a byte model may emit broken UTF-8."""
    plain = Template(byte_tokenizer(), think=False, stop_ids=(258,))
    chain = a_chain([257, 97], [0xC3, 98, 258])
    assert plain.response_text(chain) == "\ufffdb"
    assert plain.response_text(replace(chain, prompt_len=4, sampled=[False] * 5)) == ""


def tagless_bytes() -> Any:
    """The byte-level tokenizer without think tags among its tokens."""
    tokenizer = byte_tokenizer()
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if "think" not in token["content"]]
    return type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer.from_str(json.dumps(data)),
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
    )


def dropping_tokenizer() -> Any:
    """A lower-casing BPE over a and b that silently drops every other character."""
    from tokenizers import Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, " ": 2}, merges=[]))
    tokenizer.normalizer = normalizers.Lowercase()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
