"""What is held out of a list is not in its training data: a list without splits gives none, or a share by speaker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.importers import ImportConfig, import_corpus
from data_pipelines.importing.catalogue import corpus_of
from data_pipelines.importing.import_report import Report
from qa_train.data.shards.index import load_index
from tests.data_pipelines.corpora.made_up import audio_cell, table_bytes, tone

NUM = 12


def run(corpus: str, path: Path, out: Path, **options: Any) -> Report:
    known = {"path": str(path), "out": str(out), "workers": 0, "error_budget": 0.0}
    (report,) = import_corpus(corpus_of(corpus), ImportConfig(**(known | options)))
    return report


def records(out: Path) -> list[dict[str, Any]]:
    return [
        json.loads(meta) for tar in sorted(out.glob("*.tar")) for meta in load_index(str(tar)).table["meta"].to_pylist()
    ]


def listed(folder: Path, kind: str, *, speakers: int = 0, split: bool = False, name: str = "metadata") -> Path:
    """A list of recordings of one kind, without a word about splits unless ``split``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for i in range(NUM):
        (folder / f"c{i}.wav").write_bytes(tone(f"c{i}.wav"))
        row = {"audio": f"c{i}.wav", "text": f"words {i}"}
        row |= {"speaker": f"s{i % speakers}"} if speakers else {}
        rows.append(row | ({"split": "test" if i < 3 else "train"} if split else {}))
    if kind == "table":
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
        return folder / f"{name}.csv"
    if kind == "jsonl":
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder / f"{name}.jsonl"
    if kind == "kaldi":
        for file, column in (("wav.scp", "audio"), ("text", "text")):
            (folder / file).write_text("".join(f"u{i:02d} {row[column]}\n" for i, row in enumerate(rows)))
        (folder / "utt2spk").write_text("".join(f"u{i:02d} {row.get('speaker', i)}\n" for i, row in enumerate(rows)))
        return folder
    cells = [{**row, "audio": audio_cell(row["audio"])} for row in rows]
    (folder / f"{name}.parquet").write_bytes(table_bytes(cells))
    return folder / f"{name}.parquet"


KINDS = {"table": "table", "jsonl": "jsonl", "kaldi": "kaldi", "parquet": "huggingface"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["test", "dev", "eval-clean"])
def test_a_list_without_splits_gives_no_held_out_set(kind: str, split: str, tmp_path: Path) -> None:
    path = listed(tmp_path / "in", kind)
    with pytest.raises(
        ValueError, match=rf"split={split} would be the same recordings as split=train.*split_share=0\.1"
    ):
        run(KINDS[kind], path, tmp_path / "out", split=split, purpose="eval")
    assert run(KINDS[kind], path, tmp_path / "all", split="train").made == NUM


@pytest.mark.parametrize("kind", ["table", "jsonl"])
def test_a_list_with_splits_gives_its_own(kind: str, tmp_path: Path) -> None:
    path = listed(tmp_path / "in", kind, split=True)
    assert run(KINDS[kind], path, tmp_path / "held", split="test", purpose="eval").made == 3
    assert run(KINDS[kind], path, tmp_path / "trained", split="train").made == NUM - 3
    with pytest.raises(ValueError, match="nothing to import"):
        run(KINDS[kind], path, tmp_path / "none", split="dev", purpose="eval")


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_whose_name_says_what_it_is_is_taken_at_its_word(kind: str, tmp_path: Path) -> None:
    path = listed(tmp_path / "test", kind, name="test")
    assert run(KINDS[kind], path, tmp_path / "out", split="test", purpose="eval").made == NUM


@pytest.mark.parametrize("kind", KINDS)
def test_a_share_is_held_out_speaker_by_speaker(kind: str, tmp_path: Path) -> None:
    path = listed(tmp_path / "in", kind, speakers=6)
    both = {"split_share": 0.4}
    run(KINDS[kind], path, tmp_path / "held", split="test", purpose="eval", **both)
    run(KINDS[kind], path, tmp_path / "trained", split="train", **both)
    held, trained = records(tmp_path / "held"), records(tmp_path / "trained")
    assert len(held) + len(trained) == NUM
    assert held
    assert trained
    assert not {each["speaker"] for each in held} & {each["speaker"] for each in trained}
    assert {each["split"] for each in held} == {"test"}
    assert {each["split"] for each in trained} == {"train"}


@pytest.mark.parametrize("kind", ["table", "jsonl", "parquet"])
def test_without_speakers_each_recording_is_drawn(kind: str, tmp_path: Path) -> None:
    path = listed(tmp_path / "in", kind)
    made = [
        run(KINDS[kind], path, tmp_path / split, split=split, purpose=purpose, split_share=0.5).made
        for split, purpose in (("test", "eval"), ("train", "train"))
    ]
    assert sum(made) == NUM
    assert min(made) > 0


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_is_between_nothing_and_all(share: float, tmp_path: Path) -> None:
    path = listed(tmp_path / "in", "table")
    with pytest.raises(ValueError, match="give a share between 0 and 1"):
        run("table", path, tmp_path / "out", split="train", split_share=share)
    with pytest.raises(ValueError, match="public corpora have splits of their own"):
        run("librispeech", path.parent, tmp_path / "out", split="train-clean-100", split_share=0.1)
