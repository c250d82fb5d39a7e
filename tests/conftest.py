"""For all tests: the longest one first, so that no worker is left alone with it at the end; and what is done once."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from multiprocessing.context import BaseContext

import pytest

# Modules are not garbage. Looking through them costs a quarter of the imports, and most of a second a collection.
gc.disable()

from qa_train.data.stores import node_files  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def own_node_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests share no files with other processes of this machine; their rows may have invented fingerprints."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("node")
    folder.chmod(0o700)
    patch.setattr(node_files, "_folder", lambda: folder)
    yield
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def one_fork_server() -> Iterator[None]:
    """A command has a fork server of its own. Here the first one serves all, so that it imports for all."""
    patch = pytest.MonkeyPatch()
    preload = BaseContext.set_forkserver_preload

    def for_all(context: BaseContext, modules: Sequence[str]) -> None:
        preload(context, [*modules, "pytest", "webdataset", "data_pipelines.labelling.label_shard"])

    patch.setattr(BaseContext, "set_forkserver_preload", for_all)
    yield
    patch.undo()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "test_quickstart_run" not in item.nodeid)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()
