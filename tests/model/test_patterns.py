"""Regular expressions of other people's tokenizers: those of released models pass, those that never end do not."""
# ruff: noqa: E501 (the expressions as they are)

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from qa_train.model import load_model
from qa_train.model.stored.patterns import ambiguous, expressions
from tests.model.stored import write_model

# GPT-2, Qwen2, Llama 3, GPT-4o, DeepSeek-V3 (their first pre-tokenizer), Kimi (shortened), and parts that look like bombs.
RELEASED = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}&&[^\p{Han}]]*[\p{Ll}&&[^\p{Han}]]+(?i:'s|'t)?",
    r"[\r\n]",
    r"(?:\r?\n)+",
    r" ",
    "",
    r"\s+$",
    r"[]a-]+x",
    r"(?=(\d{3})+(?!\d))",
    r"(\p{L}){1,4}",
]
BOMBS = [
    r"(a+)+$",
    r"(.*a){99}",
    r"(a|aa)*b",
    r"((a+))+",
    r"(?:\s*\w+)*$",
    r"(?i:(x*)y*)*",
    r"([a-z]+)*\d",
    r"(?<n>a+)+",
    r"(a*){2,}",
    r"((a|b)c?)+x",
    r"(?:a+)++",
]


@pytest.mark.parametrize("pattern", RELEASED, ids=lambda p: repr(p[:20]))
def test_expressions_of_released_tokenizers_pass(pattern: str) -> None:
    assert ambiguous(pattern) is None


@pytest.mark.parametrize("pattern", BOMBS)
def test_a_repeated_group_with_a_choice_is_found(pattern: str) -> None:
    part = ambiguous(pattern)
    assert part is not None
    assert part in pattern
    assert ambiguous(rf"\\s+|{pattern}|x") is not None


def test_damaged_expressions_are_read_to_their_end() -> None:
    for pattern in (")", "(", "((", "[", "[^", "\\", "a{", "{2}", "*", "|", "(?", "(?<", "[[a]", "(a+)+" * 300):
        part = ambiguous(pattern)
        # What is not closed holds no repeat that could be multiplied.
        assert part == ("(a+)+" if pattern.startswith("(a+)+") else None)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("saved") / "checkpoint-2", manifest=False)


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}},
        {"normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"Regex": "(x|xx)*y"}, "content": ""}]}},
        {"decoder": {"type": "Replace", "pattern": {"Regex": "(.*a){99}"}, "content": ""}},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_tokenizer_that_could_never_end_is_refused(change: dict[str, Any], saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "checkpoint-2"))
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(content | change))
    with pytest.raises(ValueError, match=r"tokenizer\.json splits text by a regular expression") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    assert list(expressions(change))
