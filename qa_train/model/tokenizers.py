"""Tokenizers: the small built-in one, and the special tokens that every other one receives.

Ids are looked up by name everywhere; no code of this project contains a token id.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

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

# One digit at a time, words with their leading space, runs of punctuation, line breaks, blanks.
_WORDS = r"[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train_nano_tokenizer(texts: Iterable[str], vocab_size: int, out: str | Path) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on ``texts`` and write it to the folder ``out``.

    The special tokens take the first ids in the order of ``SPECIAL_TOKENS``, then the 256 bytes,
    then the merges, so that two vocabularies of different size agree on their common beginning.
    Any text can be encoded: what no merge covers falls back to bytes.
    """
    smallest = len(SPECIAL_TOKENS) + 256
    if vocab_size < smallest:
        raise ValueError(f"vocab_size is {vocab_size}; the special tokens and the bytes need {smallest}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
    )
    wrapped.save_pretrained(out)
    return wrapped


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
