"""YAML of others: plain values, and no aliases that stand for more than can be looked at."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from qa_train.utils.safe_yaml import read_yaml

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "values, by aliases"),
        (LAUGHS.replace("[", "{k: [").replace("]", "]}"), "by aliases|mapping|expected"),
        ("a: &a [*a]", "an alias in it refers to itself"),
        ("[" * 3000, "nested too deeply"),
        ("a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
        ("a: [", "expected the node content"),
    ],
)
def test_what_cannot_be_looked_at_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises((ValueError, yaml.YAMLError), match=said):
        read_yaml(path)


def test_values_are_those_of_the_library(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    for text in ("", "a: &x [1, 2.5, null]\nb: *x\nc: {d: 2024-01-02}", "- a\n- b"):
        path.write_text(text)
        assert read_yaml(path) == yaml.safe_load(text)


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ValueError, match=r"a\.yaml is not UTF-8 text \("):
        read_yaml(tmp_path / "a.yaml")


def test_a_large_file_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"#" * (9 << 20))
    with pytest.raises(ValueError, match="9 MiB: at most 8 MiB"):
        read_yaml(path)
