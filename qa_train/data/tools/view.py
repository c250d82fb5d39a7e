"""Looking at shards: one shard's members, one record, and files to listen to and look at."""

from __future__ import annotations

import json
import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qa_train.config import StorageConfig
from qa_train.data.audio.front_end import FRONT_END
from qa_train.data.audio.waveform import SAMPLE_RATE, BadAudio, describe, read_clip, segments
from qa_train.data.shards.index import SUFFIX, ShardIndex, load_index, placed, scan
from qa_train.data.shards.tar import DamagedShard, members
from qa_train.data.stores import storage
from qa_train.data.text.prompts import CHAT, PromptBank
from qa_train.data.tools.clean import clipped_share
from qa_train.utils import draws
from qa_train.utils.progress import duration

Row = dict[str, Any]
# Of the plots: as many as the released model hears.
_MEL_BINS = 128


def open_index(path: str, cfg: StorageConfig | None = None) -> tuple[ShardIndex, bool]:
    """The stored index of a shard, or one made by a scan now (and not written); True if it was stored. ``cfg``: how
    remote shards are read, here and below.
    """
    if storage.exists(storage.beside(path, SUFFIX), cfg):
        return load_index(path, cfg), True
    return scan(path, keep_damaged=True, cfg=cfg), False


def describe_shard(path: str, most: int = 10, cfg: StorageConfig | None = None) -> str:
    """Members by type, the index, skipped records, and the first records."""
    index, stored = open_index(path, cfg)
    kinds: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    damage = ""
    with storage.open_binary(path, cfg) as file:
        known = (clip for record in placed(index) for clip in record.clips)
        try:
            for member in known if index.origin else members(file, path, index.shard_size):
                kinds[member.kind] += 1
                sizes[member.kind] += member.size
        except DamagedShard as error:
            damage = f"damaged: {error}"
    lines = [f"{path}: {index.shard_size} bytes{f', indexed in place ({index.origin})' if index.origin else ''}"]
    lines += [f"  {count} members .{kind}, {sizes[kind]} bytes" for kind, count in kinds.most_common()]
    lines += [damage] if damage else []
    source = "index" if stored else "no index next to it; a scan finds"
    audio = duration(sum(index.table["duration_s"].to_pylist()))
    lines.append(f"{source}: {len(index)} records, {audio}, fingerprint {index.fingerprint[:16]}")
    lines += [f"  {problem}" for problem in index.problems[:most]]
    lines += [f"  ... and {len(index.problems) - most} more"] if len(index.problems) > most else []
    for row in index.table.slice(0, most).to_pylist():
        lines.append(f"  {row['key']}  {row['duration_s']:.2f} s  {_short(row['meta'])}")
    lines += [f"  ... and {len(index) - most} more records"] if len(index) > most else []
    return "\n".join(lines)


def describe_record(path: str, key: str, cfg: StorageConfig | None = None) -> str:
    """One record in full: its JSON, positions and decoding of its clips, and the tasks it qualifies for."""
    index, _ = open_index(path, cfg)
    keys = index.table["key"].to_pylist()
    if key not in keys:
        known = [p for p in index.problems if p.key == key]
        why = f"; skipped: {known[0].reason}, {known[0].detail}" if known else f"; the first keys are {keys[:5]}"
        raise ValueError(f"{path} has no record {key!r}{why}")
    return describe_row(path, index.table.slice(keys.index(key), 1).to_pylist()[0], cfg)


def describe_row(path: str, row: Row, cfg: StorageConfig | None = None) -> str:
    """A row of an index as ``describe_record`` prints it."""
    record = json.loads(row["meta"])
    lines = [f"{path}: {row['key']}, {row['duration_s']:.2f} s", json.dumps(record, ensure_ascii=False, indent=2)]
    reader = storage.RangeReader(cfg)
    columns = (row[column] for column in ("names", "offsets", "sizes", "crc32c"))
    for name, offset, size, checksum in zip(*columns, strict=True):
        raw = reader.read(path, offset, size, checksum)
        lines.append(f".{name}: {size} bytes at {offset}: {_describe_clip(raw)}")
    bank = PromptBank.load()
    tasks = [task for task in sorted(bank.tasks) if bank.qualifies(record, task)]
    if record.get("messages") and bank.qualifies(record, CHAT):
        tasks.insert(0, CHAT)
    lines.append(f"tasks: {', '.join(tasks) or 'none'}")
    return "\n".join(lines)


def draw_rows(
    paths: Sequence[str], count: int, seed: int, cfg: StorageConfig | None = None
) -> Iterator[tuple[str, Row]]:
    """``count`` records, one shard after another in a random order; the same for the same seed."""
    order = sorted(paths, key=lambda path: draws.digest(f"{seed} {Path(path).name}", 64))
    rng = np.random.default_rng(seed)
    indexes = [open_index(path, cfg)[0] for path in order[:count]]
    for turn in range(count):
        index = indexes[turn % len(indexes)]
        if len(index):
            row = int(rng.integers(len(index)))
            yield index.path, index.table.slice(row, 1).to_pylist()[0]


def write_row(path: str, row: Row, folder: Path, cfg: StorageConfig | None = None) -> list[Path]:
    """Write a record's unchanged clips (playable files), its JSON, and a PNG of waveform and log-mel of each clip."""
    folder.mkdir(parents=True, exist_ok=True)
    # A key is data, not a path.
    stem = re.sub(r"[^\w\-]+", "_", row["key"])[:100]
    written = [folder / f"{stem}.json"]
    written[0].write_text(json.dumps(json.loads(row["meta"]), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    reader = storage.RangeReader(cfg)
    columns = (row[column] for column in ("names", "offsets", "sizes", "crc32c"))
    for name, offset, size, checksum in zip(*columns, strict=True):
        raw = reader.read(path, offset, size, checksum)
        target = folder / f"{stem}.{re.sub(r'[^0-9a-z.]+', '_', name.lower())}"
        target.write_bytes(raw)
        picture = target.with_name(target.name + ".png")
        plot_clip(read_clip(raw), picture, title=f"{row['key']}.{name}", said=json.loads(row["meta"]).get("text"))
        written += [target, picture]
    return written


def plot_clip(wave: np.ndarray, out: str | Path, *, title: str = "", said: Any = None) -> None:
    """PNG with the waveform [n] at 16 kHz above the log-mel frames that the encoder sees, in Hz and dB.

    said: what is spoken in the clip, for a line below the title.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("plots need matplotlib: pip install 'qa-train[plots]'") from error
    # Without the two frames after each segment, which are for the convolutions only.
    from qa_train.data.audio.mel import bin_hertz, decibels, log_mel

    parts = [log_mel(part, _MEL_BINS)[:, : FRONT_END.frames(len(part))].numpy() for part in segments(wave)]
    level = decibels(np.concatenate(parts, axis=1))
    figure = Figure(figsize=(10, 5), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2])
    above.plot(np.arange(len(wave)) / SAMPLE_RATE, wave, linewidth=0.5)
    # Dollar signs of a text are no formula.
    lines = [title, *textwrap.wrap(str(said), 110)[:3]] if said else [title]
    above.set_title("\n".join(lines), parse_math=False)
    above.set(ylim=(-1, 1), ylabel="amplitude")
    image = below.imshow(
        level - level.max(), origin="lower", aspect="auto", interpolation="nearest",
        extent=(0, len(wave) / SAMPLE_RATE, 0, len(level)),
    )  # fmt: skip
    marks = [hertz for hertz in (250, 500, 1000, 2000, 4000) if hertz < SAMPLE_RATE / 2]
    places = np.interp(marks, bin_hertz(_MEL_BINS), np.arange(_MEL_BINS) + 0.5)
    below.set_yticks(places, [f"{hertz:,}" for hertz in marks])
    below.set(xlabel="seconds", ylabel="Hz")
    figure.colorbar(image, ax=below, label="dB, 0 is the loudest", pad=0.01)
    figure.savefig(out, dpi=100, format="png")


def _describe_clip(raw: bytes) -> str:
    try:
        wave = read_clip(raw, max_duration_s=3600)
    except BadAudio as error:
        return f"unusable: {error}"
    peak, level = float(np.abs(wave).max()), float(np.sqrt(np.square(wave, dtype=np.float64).mean()))
    decibels = 20 * np.log10(max(level, 1e-10))
    length, clipped = len(wave) / SAMPLE_RATE, clipped_share(wave)
    return f"{describe(raw)}, {length:.2f} s, peak {peak:.3f}, {decibels:.1f} dBFS, {clipped:.2%} clipped"


def _short(meta: str) -> str:
    return meta if len(meta) <= 120 else meta[:119] + "…"
