"""What a model says and no record may hold as an answer."""

from __future__ import annotations

import pytest

from qa_train.data.text.content import is_answer
from qa_train.data.text.prompts import chat_messages


@pytest.mark.parametrize("text", ["rain", "", "<|en|> hello", "a < b", "audio", "<audio/>", "Audio 1:"])
def test_texts_that_a_pair_may_hold(text: str) -> None:
    assert is_answer(text)
    chat_messages({"messages": [{"role": "user", "content": "<audio>?"}], "chosen": "rain", "rejected": text})


@pytest.mark.parametrize("text", ["<audio>", "a<|AUDIO|>b", "<|audio_bos|>", "x<|audio_eos|>"])
def test_marks_of_clips_are_no_answer(text: str) -> None:
    assert not is_answer(text)
    with pytest.raises(ValueError, match="mark"):
        chat_messages({"messages": [{"role": "user", "content": "<audio>?"}], "chosen": "rain", "rejected": text})


def test_a_byte_of_zero_is_no_answer() -> None:
    assert not is_answer("a\0b")
