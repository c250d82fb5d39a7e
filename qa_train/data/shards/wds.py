"""The webdataset library: what writes the tars of our shards, and groups and streams those of anybody.

Its own opening of addresses is never used: it starts programs (``pipe:``, curl, gsutil), and ends without a word where
a tar is cut. Nor is its decoding, which loads pickles. It is imported on first use, since it brings torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import IO, Any, TypeVar

Item = TypeVar("Item")


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


def grouped(named: Iterable[tuple[str, Item]]) -> Iterator[tuple[str, list[Item]]]:
    """Key and items of each sample of a tar, from the names of its members: those of a key that follow one another.

    A key ends at the first dot of a file's name. Names without a dot, or with nothing before it, are in no sample. Of
    two equal names under one key both are there.
    """
    import webdataset

    last: list[Item] = []
    twice: list[Item] = []

    def files() -> Iterator[dict[str, Any]]:
        for name, item in named:
            last[:] = [item]
            yield {"fname": name, "data": item, "__url__": ""}

    def of_equal_names(_: Exception) -> bool:
        twice.extend(last)
        return True

    by_keys = partial(webdataset.tariterators.group_by_keys, handler=of_equal_names)
    for sample in webdataset.DataPipeline(files, by_keys):
        yield sample["__key__"], [item for name, item in sample.items() if name[:2] != "__"] + twice
        twice.clear()
