"""Container recipes and citation name files, extras and the version as they are."""

from __future__ import annotations

import re
import sys
import tomllib
from unittest import mock

import pytest
import yaml

from qa_train import __version__
from qa_train.cli import main
from tests.train.conftest import ROOT

RECIPES = {name: (ROOT / name).read_text() for name in ("Dockerfile", "apptainer.def")}


def test_recipes_copy_files_that_exist() -> None:
    copied = re.findall(r"^COPY (.+) \./", RECIPES["Dockerfile"], flags=re.MULTILINE)
    copied += re.findall(r"^    (\S+) /qa-train/", RECIPES["apptainer.def"], flags=re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert len(names) >= 12
    for name in names:
        assert (ROOT / name).exists(), name
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not set(names) & set(ignored)


def test_recipes_install_extras_that_exist_with_the_pinned_versions() -> None:
    known = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    asked = {name: re.search(r'"\.\[([\w,]+)\]"', text) for name, text in RECIPES.items()}
    chosen = {name: set(found[1].split(",")) for name, found in asked.items() if found}
    assert chosen["Dockerfile"] == chosen["apptainer.def"]
    assert chosen["Dockerfile"] <= known
    for text in RECIPES.values():
        assert text.count("-c constraints.txt") == 2


def test_recipes_have_the_compiler_that_kernels_need_and_check_it() -> None:
    for name, text in RECIPES.items():
        installed = re.search(r"apt-get install -y --no-install-recommends (.+?)(?: &&|\n)", text)
        assert installed is not None, name
        assert {"gcc", "libc6-dev"} <= set(installed[1].split()), name
        # Python.h comes with the base image; what is built is looked at, and the build ends where something is missing.
        check = re.search(r'python -c "(.+)"', text)
        assert check is not None, name
        for missing in (None, "there is neither gcc nor clang"):
            with (
                mock.patch("qa_train.utils.process.missing_compiler", lambda missing=missing: missing),
                pytest.raises(SystemExit) as ended,
            ):
                exec(check[1], {"exit": sys.exit})
            assert ended.value.code == missing


def test_every_package_of_the_image_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = re.search(r'"\.\[([\w,]+)\]"', RECIPES["Dockerfile"])
    assert asked is not None
    needs = project["dependencies"] + [
        n for extra in asked[1].split(",") for n in project["optional-dependencies"][extra]
    ]
    pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
    pinned = {name.lower().replace("_", "-") for name in pinned}
    names = {re.split(r"[<>=!~\[ ;]", need)[0].lower().replace("_", "-") for need in needs}
    assert names <= pinned, names - pinned


def test_a_release_has_one_version_and_one_date(capsys: pytest.CaptureFixture[str]) -> None:
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert found["version"] == __version__
    assert found["license"] == "Apache-2.0"
    sections = re.findall(r"^## \[(.+?)\](?: - (\S+))?$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert sections[:2] == [("Unreleased", ""), (__version__, str(found["date-released"]))]
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"qa-train {__version__}\n"


def test_pages_do_not_name_an_index_that_has_no_qa_train() -> None:
    """`pip install qa-train` finds nothing, or another's package; what works is said in one place, the README's."""
    pages = {path: path.read_text() for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]}
    told = [path.name for path, text in pages.items() if re.search(r"pip install .?qa-train\b", text)]
    assert told == ["README.md"]
    assert pages[ROOT / "README.md"].count("### Install\n") == 1


def test_extras_that_stand_for_others_name_extras_that_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"gpu", "tracking", "demo", "dev"} <= extras.keys()
    for needs in extras.values():
        for need in needs:
            if found := re.fullmatch(r"qa-train\[([\w,]+)\]", need):
                assert set(found[1].split(",")) <= extras.keys(), need
