"""Tokenizers: the small built-in one, and the special tokens that every other one receives.

Ids are looked up by name everywhere; no code of this project contains a token id.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from qa_train.model.stored.loading import open_folder, read_tokenizer

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
AUDIO = "<|AUDIO|>"
AUDIO_START = "<|audio_bos|>"
AUDIO_END = "<|audio_eos|>"
LANGUAGES = ("en", "zh", "yue", "es", "fr", "it", "ru", "de", "ja", "ko", "cs", "nl", "unknown")

SPECIAL_TOKENS = (
    END_OF_TEXT,
    TURN_START,
    TURN_END,
    AUDIO,
    AUDIO_START,
    AUDIO_END,
    *(f"<|{language}|>" for language in LANGUAGES),
)

NANO_DIR = Path(__file__).parent / "assets" / "nano"


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, a hub id or ``builtin:nano``, with every special token present."""
    if source == "builtin:nano":
        source = str(NANO_DIR)
    elif source.startswith("builtin:"):
        raise ValueError(f"unknown built-in tokenizer {source!r}; there is only 'builtin:nano'")
    tokenizer = read_tokenizer(open_folder(source, key="model.tokenizer", weights=False))
    add_special_tokens(tokenizer)
    return tokenizer


def add_special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Add the missing ``SPECIAL_TOKENS`` at the end of the vocabulary, and pad with ``<|endoftext|>``.

    Returns the tokens that were missing.
    """
    known = tokenizer.get_vocab()
    missing = [token for token in SPECIAL_TOKENS if token not in known]
    if missing:
        tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in missing])
    tokenizer.pad_token = END_OF_TEXT
    tokenizer.eos_token = END_OF_TEXT
    tokenizer.clean_up_tokenization_spaces = False
    return missing


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of one token of the vocabulary."""
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise ValueError(f"the tokenizer has no token {token}: load it with qa_train.model.load_tokenizer")
    return int(found)
