"""The pages themselves: links lead somewhere, no page is an orphan, and what scripts make is what they make today."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qa_train.config.nearest import valid_keys
from tests.by_path import script
from tests.train.conftest import ROOT

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")] + sorted((ROOT / "docs").rglob("*.md"))
# Markdown links and images, and images in HTML; addresses of the web are not looked up.
_LINK = re.compile(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"")
_HEADING = re.compile(r"^#+ (.+)$", flags=re.MULTILINE)
_CODE = re.compile(r"^ *```.*?^ *```|`[^`\n]*`", flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> list[str]:
    """Targets of a page's links inside the repository."""
    found = ["".join(pair) for pair in _LINK.findall(_CODE.sub("", page.read_text(encoding="utf-8")))]
    return [target for target in found if "://" not in target and not target.startswith("mailto:")]


def anchors(page: Path) -> set[str]:
    """The names that a Markdown viewer gives to a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in _HEADING.findall(text)}


def wrong_links(page: Path) -> list[str]:
    """What leads nowhere: a file that is not there, or a heading that its page does not have."""
    wrong = []
    for target in links(page):
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert not wrong_links(page)


@pytest.mark.parametrize("target", ["nosuch.md", "README.md#no-such-heading", "#nothing", "images/nosuch.svg"])
def test_a_wrong_link_is_found(target: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Here")
    page = tmp_path / "page.md"
    page.write_text(f"# There\n[it]({target}) [here](README.md#here) [there](#there) [web](https://nosuch.example)")
    assert wrong_links(page) == [target]


@pytest.mark.parametrize("folder", ["docs", "docs/lab"])
def test_every_guide_is_in_its_index(folder: str) -> None:
    index = ROOT / folder / "README.md"
    pages = {path.name for path in (ROOT / folder).glob("*.md")} - {"README.md"}
    assert pages <= {target.partition("#")[0] for target in links(index)}


@pytest.mark.parametrize("index", ["README.md", "docs/README.md"])
def test_who_starts_finds_every_page_for_it(index: str) -> None:
    page = ROOT / index
    found = {(page.parent / target.partition("#")[0]).resolve() for target in links(page)}
    assert set((ROOT / "docs/start").glob("*.md")) <= found


def test_the_picture_and_the_table_of_the_architecture_are_those_of_today() -> None:
    made = script("architecture")
    assert made.PICTURE.read_text() == made.picture(), "run: python scripts/architecture.py"
    assert made.PAGE.read_text() == made.page(), "run: python scripts/architecture.py"


def test_the_picture_draws_every_package_and_no_line_upwards() -> None:
    made = script("architecture")
    graph, rows = made.packages(), made.floors(made.packages())
    floor = {name: number for number, row in enumerate(rows) for name in row}
    assert set(floor) == set(graph) == set(made.PURPOSES)
    assert all(len(purpose) <= 20 for purpose in made.PURPOSES.values())
    assert all(floor[user] < floor[used] for user, used in made.arrows(graph))
    # A line that is not drawn is implied by others.
    drawn = {name: {used for user, used in made.arrows(graph) if user == name} for name in graph}
    assert all(made.reachable(drawn, name) == made.reachable(graph, name) for name in graph)


def test_boxes_of_the_picture_are_as_wide_as_their_text() -> None:
    made = script("architecture")
    names = ["data_pipelines", "doctor"]
    room = 10 + sum(map(made.need, names))
    assert all(width >= made.need(name) for name, width in zip(names, made.widths(names, room), strict=True))
    with pytest.raises(SystemExit, match="shorten their PURPOSES"):
        made.widths(names, room - 20)


def test_a_step_that_is_renamed_stops_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    made = script("architecture")
    monkeypatch.setattr(made, "STEPS", [made.STEPS[0]._replace(name="NoSuch"), *made.STEPS[1:]])
    with pytest.raises(SystemExit, match="correct STEPS"):
        made.picture()


def test_the_settings_page_is_that_of_today() -> None:
    made = script("settings_page")
    assert made.PAGE.read_text() == made.page(), "run: python scripts/settings_page.py"


def test_the_settings_page_has_every_key_and_its_index_names_real_ones() -> None:
    index, _, tables = script("settings_page").PAGE.read_text().partition("<!--")
    listed = set(re.findall(r"^\| `([\w.]+)` \|", tables, flags=re.MULTILINE))
    assert not re.findall(r"^.*\|\s+\|$", tables, flags=re.MULTILINE), "write a comment above these fields"
    sections = {key[: dot.start()] for key in listed for dot in re.finditer(r"\.", key)}
    assert {key for key in valid_keys() if key not in sections} <= listed
    asked = {key for key in re.findall(r"`([a-z_]+\.[\w.]+)`", index) if not key.endswith((".md", ".yaml"))}
    assert len(asked) > 40
    assert asked <= listed


# What an experiment expects, in its words, and the row and column of docs/benchmarks.md that has it.
EXPECTED = {
    "pretrain": {
        "WER of held-out recorded English": "WER, recorded English",
        "language identification": "language identification",
        "sound class": "sound class",
    },
    "sft": {
        "spoken questions": "spoken questions, all",
        "audio analysis questions": "audio analysis questions, all",
        "WER": "WER, recorded English",
    },
    "dpo": {"held-out pairs": "held-out pairs, reward"},
}


def test_readme_and_experiments_give_the_figures_of_the_benchmarks() -> None:
    text = (ROOT / "docs/benchmarks.md").read_text()
    head, *rows = [line for line in text.splitlines() if line.startswith("| metric | n ") or "(%, " in line]
    columns = [cell.strip() for cell in head.split("|")]
    measured = {row.split(" (%, ")[0].strip("| "): row.split("|") for row in rows}
    shown = [line for line in (ROOT / "README.md").read_text().splitlines() if "(%, " in line]
    assert len(shown) == 3
    assert set(shown) <= set(rows)
    for stage, wanted in EXPECTED.items():
        header = (ROOT / f"configs/experiment/quickstart_{stage}.yaml").read_text()
        expected = next(line for line in header.splitlines() if line.startswith("# Expected:"))
        for words, name in wanted.items():
            value = float(measured[name][columns.index(stage)].split()[0])
            assert f"{words} {value:.0f} %" in expected, f"{stage}: {name} is {value}"
