"""Train the tokenizer that ships with the package (builtin:nano) on the training texts of the starter data.

    python scripts/train_nano_tokenizer.py [OUT] [VOCABULARY SIZE]

Only training texts are read, never held-out ones. Prompts and chat phrases count many times, so
that the wordings the model is asked in cost few tokens.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_pipelines.synthetic.preferences import NO_SPEECH, QUESTIONS
from qa_train.config import config_dir, starter_dir
from qa_train.data.shards.index import load_index
from qa_train.data.text.records import LANGUAGES
from qa_train.model.tokenizers import END_OF_TEXT, NANO_DIR, SPECIAL_TOKENS
from scripts.quickstart_data import voice_chat

# Vocabularies of 400, 550 and 1,024 tokens gave the same word error rates (docs/lab/quickstart.md).
VOCABULARY = 550
PROMPT_WEIGHT = 60
# The tasks of the quickstart.
TASKS = (
    *("asr", "translate", "lid", "sound_class", "sound_caption", "instrument"),
    *("ask_transcript", "ask_language", "ask_speech", "ask_sound"),
)
# One digit at a time, words with their leading space, runs of punctuation, line breaks, blanks.
_WORDS = r"[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHAT_PHRASES = ("system\nYou are a helpful assistant.", "user\n", "assistant\n", "Audio 1: ", NO_SPEECH, "Yes", "No")


def prompts() -> Iterator[str]:
    """Every English wording of the tasks, with the language names filled in."""
    for path in sorted((config_dir() / "prompts").glob("*.yaml")):
        bank = yaml.safe_load(path.read_text(encoding="utf-8"))
        for task in (bank[name] for name in TASKS if name in bank):
            for wording in task["prompts"].get("en", []):
                for name in ("English", "Spanish", "French", "Italian", "Russian"):
                    yield wording.replace("{language_name}", name).replace("<|{language}|>", "")


def texts() -> Iterator[str]:
    """Training texts with the weights of the module docstring."""
    for kind in ("speech", "sound"):
        for meta in load_index(str(starter_dir() / f"{kind}-train.tar")).table["meta"].to_pylist():
            record = json.loads(meta)
            # English carries most of the training.
            weight = 4 if record.get("language") == "en" else 1
            for text in (record.get("text"), record.get("label"), record.get("caption")):
                if text:
                    yield from [text] * weight
    yield from (starter_dir() / "texts" / "train.txt").read_text(encoding="utf-8").splitlines()
    for question in voice_chat.split(voice_chat.NUM_HELD_OUT_QUESTIONS)[0]:
        yield question.spoken
        yield question.reply
    for phrase in (*prompts(), *QUESTIONS, *CHAT_PHRASES, *LANGUAGES.values()):
        yield from [phrase] * PROMPT_WEIGHT


def train(texts: Iterable[str], vocab_size: int, out: str | Path) -> PreTrainedTokenizerFast:
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


def main() -> None:
    """Write the tokenizer, and say how long texts become."""
    out = sys.argv[1] if len(sys.argv) > 1 else str(NANO_DIR)
    size = int(sys.argv[2]) if len(sys.argv) > 2 else VOCABULARY
    tokenizer = train(texts(), size, out)
    wordings = list(prompts())
    lines = (starter_dir() / "texts" / "train.txt").read_text(encoding="utf-8").splitlines()
    for name, sample in (("prompts", wordings), ("sentences", lines)):
        tokens = sum(len(tokenizer(text).input_ids) for text in sample)
        print(f"{name}: {tokens / len(sample):.1f} tokens, {tokens / sum(len(t.split()) for t in sample):.2f} per word")


if __name__ == "__main__":
    main()
