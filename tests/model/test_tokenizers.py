from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from qa_train.model import load_tokenizer
from qa_train.model.tokenizers import SPECIAL_TOKENS, add_special_tokens, token_id
from scripts.train_nano_tokenizer import train

TEXTS = ["The lights are on.", "Turn the lights off, please.", "Привет, свет!"] * 3


@pytest.mark.parametrize("text", ["Hello world", " ¿Qué?\n\nПривет 2024", "日本語 🎵", "<|en|>Hi<|endoftext|>", ""])
def test_builtin_tokenizer_gives_every_text_back(text: str) -> None:
    tokenizer = load_tokenizer("builtin:nano")
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_special_tokens_are_single_and_first() -> None:
    tokenizer = load_tokenizer("builtin:nano")
    ids = [token_id(tokenizer, token) for token in SPECIAL_TOKENS]
    assert ids == list(range(len(SPECIAL_TOKENS)))
    assert tokenizer("".join(SPECIAL_TOKENS))["input_ids"] == ids
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == ids[0]
    assert tokenizer.decode([*ids, *tokenizer("Hi")["input_ids"]], skip_special_tokens=True) == "Hi"


def test_training_is_repeatable_and_larger_vocabularies_begin_alike(tmp_path: Path) -> None:
    small = train(TEXTS, 290, tmp_path / "a")
    again = train(TEXTS, 290, tmp_path / "b")
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()
    large = train(TEXTS, 310, tmp_path / "c")
    assert small.get_vocab() == again.get_vocab()
    assert small.get_vocab().items() <= large.get_vocab().items()
    loaded = AutoTokenizer.from_pretrained(tmp_path / "c")
    assert loaded("The lights")["input_ids"] == large("The lights")["input_ids"]
    with pytest.raises(ValueError, match="need 275"):
        train(TEXTS, 200, tmp_path / "d")


def test_missing_special_tokens_are_added_at_the_end(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    words = {"a": 0, "<|im_end|>": 1}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "a")))
    missing = add_special_tokens(tokenizer)
    assert missing == [token for token in SPECIAL_TOKENS if token != "<|im_end|>"]
    assert token_id(tokenizer, "<|im_end|>") == 1
    assert sorted(token_id(tokenizer, t) for t in missing) == list(range(2, 2 + len(missing)))
    assert add_special_tokens(tokenizer) == []


def test_wrong_names_are_refused() -> None:
    with pytest.raises(ValueError, match="only 'builtin:nano'"):
        load_tokenizer("builtin:big")
    with pytest.raises(ValueError, match="no token <|gone|>".replace("|", r"\|")):
        token_id(load_tokenizer("builtin:nano"), "<|gone|>")
