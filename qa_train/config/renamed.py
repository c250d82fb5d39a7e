"""Settings that have another name than in earlier versions: refused by the new name, and read in old run folders."""

from __future__ import annotations

from typing import Any

RENAMED = {"data.chapter_samples": "data.shuffle_window", "tracking.tables_mib": "tracking.max_clips_mib"}


def with_new_names(stored: Any) -> Any:
    """The mapping of a stored ``config.yaml``, changed in place to today's names."""
    for old, new in RENAMED.items():
        section, _, key = old.partition(".")
        part = stored.get(section)
        if part and key in part:
            part[new.partition(".")[2]] = part.pop(key)
    return stored
