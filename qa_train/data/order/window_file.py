"""A planned window as one array of integers in a file, for the other processes of a node."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np

from qa_train.data.order.seek import Start
from qa_train.data.order.shuffle_window import Window
from qa_train.data.stores.node_files import load_numbers, save_numbers


def write_window(made: tuple[Window, Start], path: Path) -> None:
    """Write a window and the start of the next one."""
    window, following = made
    cursors = [number for cursor in following.cursors for number in cursor]
    # The reasons are the only text.
    skipped = json.dumps({i: dict(reasons) for i, reasons in window.skipped.items()}).encode()
    parts = [
        np.asarray([following.window, following.first_batch, following.base, *cursors], dtype=np.int64),
        *(window.samples.reshape(-1), window.ends, window.batch_tokens, window.batch_costs, window.long.reshape(-1)),
        np.frombuffer(skipped, dtype=np.uint8).astype(np.int64),
    ]
    sizes = np.asarray([len(part) for part in parts], dtype=np.int64)
    save_numbers(np.concatenate([sizes, *parts]), path)


def read_window(path: Path) -> tuple[Window, Start]:
    """What ``write_window`` wrote, as views of the mapped file. Raises ValueError or OSError if it is not whole."""
    values = load_numbers(path)
    sizes = values[:7].tolist()
    if len(values) != 7 + sum(sizes):
        raise ValueError(f"{len(values)} numbers, {7 + sum(sizes)} were written")
    place, samples, ends, tokens, costs, long, skipped = np.split(values[7:], np.cumsum(sizes)[:-1])
    number, first, base, *cursors = place.tolist()
    reasons = json.loads(skipped.astype(np.uint8).tobytes())
    window = Window(
        *(samples.reshape(-1, 3), ends, tokens, costs, long.reshape(-1, 3)),
        {int(i): Counter(counts) for i, counts in reasons.items()},
    )
    return window, Start(number, first, base, tuple(zip(cursors[::2], cursors[1::2], strict=True)))
