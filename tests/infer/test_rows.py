"""Rows of a batch: what is handed on while an answer grows, its limit, and its end."""

from __future__ import annotations

import random

import pytest

from qa_train.data.text.sample import Message, Sample, TextPart
from qa_train.infer.row_stream import Row, before_stop
from qa_train.model.tokenizers import load_tokenizer

SAMPLE = Sample("k", (), 0, "chat")
STOP = 2


class Bytes:
    """A tokenizer whose tokens are single bytes."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return bytes(ids).decode(errors="replace")


def grown(
    text: str, limit: int = 1000, end: bool = True, gone_after: int = 1000, stop: tuple[str, ...] = (),
    sample: Sample = SAMPLE,
) -> tuple[Row, list[str]]:  # fmt: skip
    pieces: list[str] = []
    row = Row(sample, (), pieces.append, limit, lambda: len(row.ids) >= gone_after, stop)
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


@pytest.mark.parametrize(
    ("text", "stop", "said", "tokens"),
    [
        ("yes END of it", ("END",), "yes", 7),
        # Half a stop that became none is said, and so is one at the end.
        ("an ENEND of it", ("END",), "an EN", 8),
        ("the EN", ("END",), "the EN", 6),
        # The one that is whole first ends the answer.
        ("abcabd", ("zzz", "abd", "bc"), "a", 3),
        ("1. Du\n\nUser: und?", ("\n\nUser:",), "1. Du", 12),
        ("schön! über", ("öber", "über"), "schön!", 13),
        ("END", ("END",), "", 3),
        ("no", ("END", "x"), "no", 2),
    ],
)
def test_a_stop_ends_the_row_and_no_part_of_it_is_handed_on(
    text: str, stop: tuple[str, ...], said: str, tokens: int
) -> None:
    row, pieces = grown(text, stop=stop)
    assert "".join(pieces) == said
    assert (row.ended, row.truncated, len(row.ids)) == (True, False, tokens)
    assert all(pieces)


def test_any_text_with_any_stops_is_said_up_to_the_first() -> None:
    draw = random.Random(0)
    found = 0
    for _ in range(3000):
        text = "".join(draw.choice("aab \nü") for _ in range(draw.randint(1, 20)))
        stop = tuple("".join(draw.choice("aab \nü") for _ in range(draw.randint(1, 4))) for _ in range(2))
        row, pieces = grown(text, stop=stop)
        grew = [text[:end].lstrip() for end in range(1, len(text) + 1)]
        first = next((part for part in grew if any(each in part for each in stop)), text.lstrip())
        assert "".join(pieces) == before_stop(first, stop).strip(), (text, stop)
        found += row.ids != list(text.encode())
    assert 1000 < found < 3000


def test_text_is_handed_on_while_no_stop_can_come_of_it() -> None:
    _, pieces = grown("abENcd", stop=("END",))
    assert pieces == ["a", "b", "ENc", "d"]


def test_a_stop_at_the_limit_is_no_cut_answer() -> None:
    row, pieces = grown("a END", limit=5, end=False, stop=("END",))
    assert ("".join(pieces), row.truncated) == ("a", False)


def test_an_answer_that_was_begun_keeps_the_space_before_its_first_word() -> None:
    begun = Sample("k", (Message("assistant", (TextPart("It is"),), unfinished=True),), 0, "chat")
    assert "".join(grown(" a bell. ", sample=begun)[1]) == " a bell."


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
