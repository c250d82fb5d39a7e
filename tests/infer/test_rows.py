"""Rows of a batch: what is handed on while an answer grows, its limit, and its end."""

from __future__ import annotations

import pytest

from qa_train.data.text.sample import Sample
from qa_train.infer.row_stream import Row
from qa_train.model.tokenizers import load_tokenizer

SAMPLE = Sample("k", (), 0, "chat")
STOP = 2


class Bytes:
    """A tokenizer whose tokens are single bytes."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return bytes(ids).decode(errors="replace")


def grown(text: str, limit: int = 1000, end: bool = True, gone_after: int = 1000) -> tuple[Row, list[str]]:
    pieces: list[str] = []
    row = Row(SAMPLE, (), pieces.append, limit, lambda: len(row.ids) >= gone_after)
    for byte in [*text.encode(), *([STOP] if end else [])]:
        row.take(byte, Bytes(), [STOP])
    return row, pieces


@pytest.mark.parametrize("text", ["Hello there.", "  two  spaces \n\n", "Grüße, 你好 🎵!", "", " ", "ends in ü"])
def test_pieces_make_the_whole_text_stripped(text: str) -> None:
    row, pieces = grown(text)
    assert "".join(pieces) == text.strip()
    assert all(pieces)
    assert (row.ended, row.truncated) == (True, False)


def test_no_piece_holds_half_a_character() -> None:
    _, pieces = grown("a你b")
    assert pieces == ["a", "你", "b"]


def test_a_limit_ends_the_row_and_what_is_there_is_handed_on() -> None:
    row, pieces = grown("a b ü", limit=4)
    assert "".join(pieces) == "a b"
    assert (row.ended, row.truncated, len(row.ids)) == (True, True, 4)
    row, pieces = grown("ü", limit=1)
    # A character that will never be completed is not kept from the reader.
    assert pieces == ["\ufffd"]
    row, _ = grown("abc", limit=4)
    assert (row.ended, row.truncated) == (True, False)


def test_a_row_without_a_reader_ends_at_once() -> None:
    row, pieces = grown("abcdef", gone_after=3)
    assert "".join(pieces) == "abc"
    assert row.ended


def test_the_real_tokenizer_in_pieces() -> None:
    tokenizer = load_tokenizer("builtin:nano")
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    text = "The capital of France is Paris, isn't it? 12 + 3 = 15; naïve café."
    pieces: list[str] = []
    row = Row(SAMPLE, (), pieces.append, 500)
    for token in [*tokenizer.encode(text, add_special_tokens=False), stop]:
        row.take(token, tokenizer, [stop])
    assert "".join(pieces) == text
    assert len(pieces) > 10
