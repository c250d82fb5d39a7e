"""Every corpus: its official layout in, indexed shards out, and the records are what went in."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.importers import ImportConfig, import_corpus
from data_pipelines.importing.catalogue import CORPORA, corpus_of
from qa_train.data.shards.index import load_index
from scripts.quickstart_data.clip import read_shard
from tests.data_pipelines.corpora import foreign_cases, sound_cases, speech_cases
from tests.data_pipelines.corpora.made_up import SECONDS, Case, heard, pitch_of, write_tree

CASES = [*speech_cases.CASES, *sound_cases.CASES, *foreign_cases.CASES]


def test_every_corpus_has_a_case() -> None:
    assert {case.corpus for case in CASES} == set(CORPORA)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_round_trip(case: Case, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "in", case.files)
    options: dict[str, Any] = {"path": str(root), **case.options}
    if "path" in case.options:
        options["path"] = [str(root / part) for part in case.options["path"]]
    config = ImportConfig(
        out=str(tmp_path / "out"), split=case.split, purpose=case.purpose, workers=0, samples_per_shard=2, **options
    )
    corpus = corpus_of(case.corpus)
    (report,) = import_corpus(corpus, config)
    assert Counter(report.dropped) == Counter(case.dropped), report.text()

    shards = sorted((tmp_path / "out").glob("*.tar"))
    clips = [clip for shard in shards for clip in read_shard(shard)]
    rows = [row for shard in shards for row in load_index(str(shard)).table.to_pylist()]
    assert [len(load_index(str(shard)).problems) for shard in shards] == [0] * len(shards)
    assert [row["key"] for row in rows] == [*case.keys.values()]
    assert report.made == len(case.records)
    assert report.hours == pytest.approx(sum(row["duration_s"] for row in rows) / 3600)

    for (name, (file, fields)), row, clip in zip(case.records.items(), rows, clips, strict=True):
        record = json.loads(row["meta"])
        record.pop("audios", None)
        role = corpus.role(case.split)
        common = {"source": case.corpus, "split": role} | ({} if corpus.generic else {"license": corpus.license})
        common |= {"subset": case.split} if role != case.split else {}
        assert record == common | fields, name
        # MP3 and Opus pad the ends of a clip by some milliseconds.
        seconds = len(clip.wave) / 16_000
        assert seconds == pytest.approx(case.seconds.get(name, SECONDS), abs=0.08), name
        assert heard(clip.wave) == pytest.approx(pitch_of(file), abs=6), f"{name}: another file's audio"
