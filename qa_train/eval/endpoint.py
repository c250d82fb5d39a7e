"""A model behind an OpenAI-compatible endpoint, asked the same questions as a checkpoint."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import soundfile

from qa_train.data.audio.waveform import SAMPLE_RATE
from qa_train.data.text.sample import AudioPart
from qa_train.infer.generate import Answer, Decoding, Item
from qa_train.llm.client import Endpoint, ItemRefused

# Characters of a refusal in a message.
_SHOWN = 200


def audio_messages(item: Item) -> list[dict[str, Any]]:
    """An item as chat messages: clips are ``input_audio`` parts (16-bit WAV, 16 kHz, base64)."""
    messages = []
    for message in item.sample.messages:
        content: list[dict[str, Any]] = []
        for part in message.content:
            if isinstance(part, AudioPart):
                sound = {"data": base64.b64encode(_wav(item.waves[part.clip])).decode(), "format": "wav"}
                content.append({"type": "input_audio", "input_audio": sound})
            elif content and content[-1]["type"] == "text":
                # Servers put a line end between two parts.
                content[-1]["text"] += part.text
            else:
                content.append({"type": "text", "text": part.text})
        messages.append({"role": message.role, "content": content})
    return messages


def _wav(wave: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


@dataclass(frozen=True)
class EndpointModel:
    """Answers items through an endpoint, several at a time."""

    endpoint: Endpoint
    workers: int = 8
    # What it says instead of an answer is an ``error``; otherwise the answer, which is scored.
    refusals_fail: bool = False
    # An answer does not depend on what else is asked: items of a batch can be asked again alone.
    alone: ClassVar[bool] = True

    def generate(self, items: Sequence[Item], decoding: Decoding | None = None) -> list[Answer]:
        """Answers in the order of the items; one that the endpoint refuses (too long, a filter) has an ``error``.

        Raises:
            CallFailed: a call failed after all retries.
        """
        decoding = decoding or Decoding()

        def ask(item: Item) -> Answer:
            try:
                done = self.endpoint.complete(
                    audio_messages(item), temperature=decoding.temperature, max_tokens=decoding.max_new_tokens
                )
            except ItemRefused as error:
                return Answer("", False, 0.0, str(error))
            if done.refused and self.refusals_fail:
                return Answer("", False, 0.0, f"refused: {done.text[:_SHOWN]!r}")
            return Answer(done.text, done.finish == "length", 0.0)

        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(ask, items))
