"""Makes fixtures/english_released.json: texts and what the English normaliser released with Qwen2-Audio makes of them.

    python tests/eval/make_english_fixture.py EVAL_AUDIO LM_TXT tests/eval/fixtures/english_released.json

EVAL_AUDIO is the folder ``eval_audio`` of github.com/QwenLM/Qwen2-Audio, whose own ``whisper_normalizer/`` differs from
the package of that name; LM_TXT is SLURP's ``dataset/lm/lm.txt`` (CC BY 4.0), real requests to an assistant. Every
contraction that either of the two normalisers knows is among the texts.
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

COUNT = 400
SEED = 21
EXTRA = (
    "It's kinda cold.", "sorta like that, I dunno", "'Cause the cause is unknown", "CAUSE and effect", "kinda-sorta",
    "gonna wanna gotta lemme gimme", "y'all ain't seen nothin'", "root cause: ain't gonna tell, dunno",
)  # fmt: skip


def main(eval_audio: Path, texts: Path, out: Path) -> None:
    """Write the pairs."""
    sys.path.insert(0, str(eval_audio))
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    english, basic = EnglishTextNormalizer(), BasicTextNormalizer()
    words = [re.sub(r"\\b|\\s|[()?|\\]", " ", pattern).strip() for pattern in english.replacers]
    lines = random.Random(SEED).sample(texts.read_text(encoding="utf-8").splitlines(), COUNT)
    found = [[text, basic(english(text))] for text in (*EXTRA, *(f"so {w} x" for w in words), *lines)]
    out.write_text(json.dumps(found, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
