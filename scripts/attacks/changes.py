"""Random changes of what is read: bits, pieces of files, fields of JSON."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

ODD: list[Any] = [
    None, True, -1, 0, 1, 3, 2**31, 2**64, 10**9, 10**18, 1e9, 1e308, 5e-324, float("nan"), float("inf"), "", "x",
    "../../etc/passwd", "/etc/passwd", "os.system", "${oc.env:HOME}", "a\0b", "\ud800", "\x1b[2J", "(a+)+$", "x" * 5000,
    "pipe:touch executed", "file:///etc/passwd", "<script>alert(1)</script>", "data:audio/wav;base64,AAAA",
    [], [[]], ["x"] * 50, [None], {}, {"a": {"b": 1}}, {"rope_type": "x"}, {"_target_": "os.system"},
]  # fmt: skip


def flip_bit(draw: random.Random, raw: bytes) -> bytes:
    """One bit is another."""
    changed = bytearray(raw)
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def damage_bytes(draw: random.Random, raw: bytes) -> bytes:
    """Bits flipped, a piece overwritten, taken out, put in twice, or the end cut off."""
    if not raw:
        return draw.randbytes(8)
    start = draw.randrange(len(raw))
    end = min(len(raw), start + draw.choice([1, 2, 4, 16, 512]))
    kind = draw.randrange(5)
    if kind == 0:
        return flip_bit(draw, raw)
    if kind == 1:
        return raw[:start] + draw.randbytes(end - start) + raw[end:]
    if kind == 2:
        return raw[:start] + raw[end:]
    if kind == 3:
        return raw[:end] + raw[start:]
    return raw[:start]


def odd_value(draw: random.Random, content: Any) -> Any:
    """A copy of JSON content in which one field, at any depth, holds something else, is gone, or is new."""
    made = copy.deepcopy(content)
    place: Any = made
    while True:
        keys: list[Any] = sorted(place, key=str) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return draw.choice(ODD)
        key = draw.choice(keys)
        if not isinstance(place[key], dict | list) or not place[key] or draw.random() < 0.2:
            break
        place = place[key]
    if isinstance(place, dict) and draw.random() < 0.1:
        del place[key]
    elif isinstance(place, dict) and draw.random() < 0.05:
        place["_target_"] = "os.system"
    else:
        place[key] = draw.choice(ODD)
    return made


def flip_file(draw: random.Random, folder: Path) -> None:
    """Flip one bit of one of the files that a checkpoint was saved with."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in ("manifest.json", "evil.py")]
    path = draw.choice([p for p in files if p.stat().st_size])
    path.write_bytes(flip_bit(draw, path.read_bytes()))


def odd_json(draw: random.Random, folder: Path, names: tuple[str, ...]) -> None:
    """Put something odd into one field of one of these JSON files."""
    path = draw.choice([folder / name for name in names if (folder / name).is_file()])
    path.write_text(json.dumps(odd_value(draw, json.loads(path.read_text()))))
