"""Telephone prompts of the Asterisk project: recorded human speech in five languages, one speaker each.

The same key ("vm-goodbye") is the same prompt in every language, so the English text of a key is a
translation of its recordings in the other languages. Audio: G.722 at 64 kbit/s (16 kHz).
"""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scripts.quickstart_data.clip import SAMPLE_RATE, Clip
from scripts.quickstart_data.spoken_text import spoken

# language -> (folder of the recordings, licence)
LANGUAGES = {
    "en": ("en_US_f_Allison", "CC-BY-SA-3.0"),
    "es": ("es_MX_f_Allison", "CC-BY-SA-3.0"),
    "fr": ("fr_CA_f_June", "CC-BY-SA-3.0"),
    "it": ("it_IT_m_Carlo", "CC-BY-3.0"),
    "ru": ("ru_RU_f_IvrvoiceRU", "CC-BY-3.0"),
}
PACKAGES = tuple(f"asterisk-core-sounds-{lang}{kind}" for lang in LANGUAGES for kind in ("", "-g722"))

MAX_DURATION_S = 30.0
# Slower or faster than this, text and recording do not belong together.
CHARS_PER_SECOND = (2.0, 25.0)


def read_texts(root: Path, language: str) -> dict[str, str]:
    """Raw transcripts by key, from the package's list (comments dropped; some lists open with a BOM)."""
    path = root / f"usr/share/doc/asterisk-core-sounds-{language}/core-sounds-{language}.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8-sig").splitlines()
    pairs = (line.split(":", 1) for line in lines if ":" in line and not line.startswith(";"))
    return {key.strip(): text.strip() for key, text in pairs if text.strip()}


def _decode(path: Path) -> np.ndarray:
    from G722 import G722  # only the rebuilding of the starter data needs this decoder

    samples = np.asarray(G722(SAMPLE_RATE, 64_000).decode(path.read_bytes()), dtype=np.int16)
    return samples.astype(np.float32) / 32768.0


def read(root: Path, language: str, dropped: Counter[str]) -> Iterator[Clip]:
    """Clips of one language with an unambiguous transcript; skipped ones are counted in ``dropped``."""
    folder, license_name = LANGUAGES[language]
    texts = read_texts(root, language)
    english = {key: spoken(text, "en") for key, text in read_texts(root, "en").items()}
    sounds = root / "usr/share/asterisk/sounds" / folder
    for path in sorted(sounds.rglob("*.g722")):
        key = path.relative_to(sounds).with_suffix("").as_posix()
        text = spoken(texts[key], language) if key in texts else None
        if text is None:
            dropped["no text" if key not in texts else "unclear text"] += 1
            continue
        wave = _decode(path)
        seconds = len(wave) / SAMPLE_RATE
        if seconds > MAX_DURATION_S:
            dropped[f"longer than {MAX_DURATION_S:.0f} s"] += 1
            continue
        if not CHARS_PER_SECOND[0] <= len(text) / seconds <= CHARS_PER_SECOND[1]:
            dropped["text does not fit the duration"] += 1
            continue
        record: dict[str, Any] = {
            "text": text,
            "text_raw": texts[key],
            "language": language,
            "speaker": f"asterisk-{language}",
            "source": f"asterisk-{language}",
            "license": license_name,
            "prompt_key": key,
        }
        translation = english.get(key)
        if language != "en" and translation:
            record["translation"] = {"en": translation}
        yield Clip(f"asterisk-{language}-{key.replace('/', '-')}", wave, record, group=key)
