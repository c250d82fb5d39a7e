"""Readers against excerpts of the lists that are really published (``real/README.md`` names the sources)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_pipelines.corpora.base import Drop, Item, Request
from data_pipelines.corpora.catalogue import corpus_of

REAL = Path(__file__).parent / "real"


def read(corpus: str, split: str, root: Path, **request: Any) -> tuple[list[Item], list[Drop]]:
    """What a reader finds: items and drops."""
    found = list(corpus_of(corpus).read(Request((str(root),), split, **request)))
    return [f for f in found if isinstance(f, Item)], [f for f in found if isinstance(f, Drop)]


def test_slurp_keeps_every_line_with_its_entities(tmp_path: Path) -> None:
    raw = (REAL / "slurp_devel.jsonl").read_bytes()
    (tmp_path / "devel.jsonl").write_bytes(raw)
    (tmp_path / "slurp_real").mkdir()
    (tmp_path / "slurp_real" / "audio-1.flac").touch()
    items, drops = read("slurp", "devel", tmp_path)
    rows = [json.loads(line) for line in raw.splitlines()]
    assert drops == []
    assert [item.name for item in items] == [Path(r["file"]).stem for row in rows for r in row["recordings"]]
    of = {item.name: item.record for item in items}
    assert {record["intent"] for record in of.values()} == {f"{row['scenario']}_{row['action']}" for row in rows}
    assert any(row["intent"] != f"{row['scenario']}_{row['action']}" for row in rows)
    for row in rows:
        record = of[Path(row["recordings"][0]["file"]).stem]
        words = [token["surface"] for token in row["tokens"]]
        # The spans of the line's own entities are words of a tokenizer that parts "jean's".
        spans = [(e["type"], "".join(words[place] for place in e["span"]).lower()) for e in row["entities"]]
        found = [(e["type"], e["value"].replace(" ", "").lower()) for e in record.get("entities", [])]
        assert found == spans
        assert all(entity["value"] in row["sentence"] for entity in record.get("entities", []))
    assert of["audio-1434542201"]["slots"] == {"currency_name": "american dollar, japanese yen"}
    assert of["audio-1434542201"]["intent"] == "qa_currency"
