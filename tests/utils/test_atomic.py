"""A file appears whole or not at all."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from qa_train.utils.atomic import PART, append_json_lines, local, read_appended, whole, write_json, write_text


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_as_a_whole(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": "é", "a": [1, 2]}, durable=durable)
    assert json.loads(path.read_text(encoding="utf-8")) == {"b": "é", "a": [1, 2]}
    with whole(path, durable=durable) as part:
        part.write_text("half")
        assert json.loads(path.read_text())["a"] == [1, 2]
    assert path.read_text() == "half"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(error), whole(path) as part:  # noqa: PT012 (the error comes in the middle of writing)
        part.write_text("new")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    assert part.name == path.name + PART


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "a.txt"),
        (OSError(errno.EIO, "Input/output error", "disk"), "disk"),
        (OSError("of a library"), None),
    ],
)
def test_a_failed_write_names_its_file(error: OSError, name: str | None, tmp_path: Path) -> None:
    with pytest.raises(OSError) as found, whole(tmp_path / "a.txt"):
        raise error
    assert found.value.errno == error.errno
    assert (found.value.filename and Path(found.value.filename).name) == name


@pytest.mark.parametrize("place", ["s3://bucket/a.json", Path("gs://bucket/a.json"), "https://h/a.json"])
def test_an_address_is_no_path(place: Path | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no path of this machine"):
        write_json(place, {})
    assert not list(tmp_path.iterdir())
    for path in ("/a:/b", "a:b", "C/s3:/x", "./s3:/x"):
        assert local(path) == Path(path)


def test_a_cut_line_costs_itself_and_not_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append_json_lines(path, [{"n": 0}, {"t": "\u2028"}])
    # A process is killed within a character.
    path.write_bytes(path.read_bytes() + '{"t": "你'.encode()[:-1])
    append_json_lines(path, [{"n": 1}])
    append_json_lines(path, [{"n": 2}, 3])
    assert list(read_appended(path)) == [{"n": 0}, {"t": "\u2028"}, None, {"n": 1}, {"n": 2}, None]
