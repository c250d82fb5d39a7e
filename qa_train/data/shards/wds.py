"""The webdataset library: what writes the tars of our shards, and groups and streams those of anybody.

Its own opening of addresses is never used: it starts programs (``pipe:``, curl, gsutil), and ends without a word where
a tar is cut. Nor is its decoding, which loads pickles. It is imported on first use, since it brings torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any


def tar_writer(file: IO[bytes]) -> Any:
    """A ``webdataset.TarWriter`` whose bytes depend on the content alone: no user, time or mode of this machine."""
    import webdataset

    return webdataset.TarWriter(
        file, encoder=False, user="", group="", mode=0o644, mtime=0, compress=False, format="PAX_FORMAT"
    )


def shared_out(places: Callable[[], Iterator[Any]], read: Callable[[Iterable[Any]], Iterator[Any]]) -> Any:
    """A ``webdataset.DataPipeline`` of what ``read`` makes of ``places``, dealt out to ranks and loader workers."""
    import webdataset

    return webdataset.DataPipeline(places, webdataset.split_by_node, webdataset.split_by_worker, read)
