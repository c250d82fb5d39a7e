"""Sound effects of Tux Paint's stamps: animals, instruments and household things with captions (GPL-2)."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from scripts.quickstart_data.clip import Clip, read_sound_file

PACKAGES = ("tuxpaint-stamps-default",)

# folder under stamps/ -> class; symbols (spoken letters) and mixed folders are not sounds of a class
CLASSES = {
    "animals": "animal",
    "hobbies/music/percussion": "drum",
    "hobbies/music/string": "musical instrument",
    "hobbies/music/wind": "musical instrument",
    "household": "everyday sound",
}


def _caption(path: Path) -> str | None:
    """ "A baby sheep (a lamb)." -> "a baby sheep"; None when the first line names no object."""
    line = path.read_text(encoding="utf-8").splitlines()[0] if path.exists() else ""
    caption = re.sub(r"\(.*?\)", "", line).strip().rstrip(".! ").lower()
    return caption if caption.startswith(("a ", "an ")) else None


def read(root: Path, dropped: Counter[str]) -> Iterator[Clip]:
    """Effects with an English caption; a recording used under several captions is skipped (and counted)."""
    stamps = root / "usr/share/tuxpaint/stamps"
    paths = [path for folder in CLASSES for path in sorted((stamps / folder).rglob("*.ogg"))]
    waves = {path: read_sound_file(path) for path in paths if "_desc" not in path.name}
    content = {path: hashlib.sha256(wave.tobytes()).hexdigest() for path, wave in waves.items()}
    uses = Counter(content.values())
    for path, wave in waves.items():
        caption = _caption(path.with_suffix(".txt"))
        if uses[content[path]] > 1 or caption is None:
            dropped["no caption" if caption is None else "shared recording"] += 1
            continue
        label = next(label for folder, label in CLASSES.items() if path.is_relative_to(stamps / folder))
        record = {
            "label": label,
            "caption": caption,
            "name": path.stem.replace("_", " ").lower(),
            "source": "tuxpaint",
            "license": "GPL-2.0-only",
        }
        # pig, pig_golden, pig_golden2: possibly the same animal
        group = f"tuxpaint {path.stem.split('_')[0].lower()}"
        yield Clip(f"tuxpaint-{path.stem.replace('_', '-').lower()}", wave, record, group=group)
