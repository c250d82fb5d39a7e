"""For all tests: the longest one first, so that no worker is left alone with it at the end."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "test_quickstart_run" not in item.nodeid)
