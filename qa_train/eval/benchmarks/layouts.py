"""Readers: a benchmark's official files on disk -> rows of one form.

A row holds ``id``, ``audio`` (a path, "" for a text-only question), ``gt`` (a text, or a list of accepted
ones), and where the benchmark has them ``prompt``, ``choices``, ``group`` and fields for a judge
(``question``, ``meta_info``, ``task_name``). Clips are not opened here.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qa_train.data.text.records import unquoted
from qa_train.eval.benchmarks import own_questions
from qa_train.eval.benchmarks.benchmark import Benchmark
from qa_train.eval.benchmarks.muchomusic import muchomusic_rows
from qa_train.eval.benchmarks.published import clip_named, find_list
from qa_train.eval.scores.prediction import read_json_lines

Row = dict[str, Any]

# What a reader raises of files that are not of its layout.
_OTHER_LAYOUT = (
    AttributeError, IndexError, KeyError, OSError, TypeError, json.JSONDecodeError, UnicodeDecodeError, csv.Error,
)  # fmt: skip


def read_rows(benchmark: Benchmark, data_root: Path) -> list[Row]:
    """All items of a benchmark, in the order of its files.

    Raises:
        ValueError: files that are missing or not of the layout (what was looked for), or no item left.
    """
    if benchmark.released is not None and (data_root / benchmark.released).is_file():
        rows = list(_jsonl(data_root / benchmark.released, benchmark, data_root))
        found = f"{data_root / benchmark.released} (source {benchmark.source!r})"
    else:
        root = find_list(data_root, benchmark.path, benchmark.tables)
        if root is None:
            others = {"the released": benchmark.released, "the Parquet files": benchmark.tables}
            also = "".join(f", nor {what} {name}" for what, name in others.items() if name)
            raise ValueError(
                f"benchmark {benchmark.name}: there is no {data_root / benchmark.path}{also}; set data_root= to the "
                f"folder that holds it (layout: {benchmark.reader})"
            )
        rows = _read(benchmark, root)
        found = str(root)
    rows = [row for row in rows if all(row.get(name) == value for name, value in benchmark.where.items())]
    if not rows:
        raise ValueError(f"benchmark {benchmark.name}: no item in {found} (where: {dict(benchmark.where)})")
    ids = [str(row["id"]) for row in rows]
    if len(set(ids)) != len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise ValueError(f"benchmark {benchmark.name}: the id {twice!r} occurs twice in {found}")
    return rows


def _read(benchmark: Benchmark, root: Path) -> list[Row]:
    """ValueError: files that are not of the layout, with what was missing after how many items."""
    rows: list[Row] = []
    try:
        rows.extend(READERS[benchmark.reader](root, benchmark))
    except _OTHER_LAYOUT as error:
        raise ValueError(
            f"benchmark {benchmark.name}: {root} is not of the layout {benchmark.reader} "
            f"({type(error).__name__}: {error}; {len(rows)} items could be read before)"
        ) from error
    return rows


def _jsonl(path: Path, benchmark: Benchmark, folder: Path) -> Iterator[Row]:
    """The format of the released evaluation files: {"audio", "prompt", "gt", "source"}; more fields are kept."""
    wanted = re.compile(benchmark.source or "", re.I)
    sources = set()
    matched = 0
    for number, row in enumerate(read_json_lines(path), 1):
        sources.add(str(row.get("source", "")))
        if benchmark.source is not None and not wanted.search(str(row.get("source", ""))):
            continue
        matched += 1
        if not isinstance(row.get("audio"), str) or not isinstance(row.get("gt", ""), str | list):
            raise ValueError(f"{path}, line {number}: audio must be a path, and gt a text or a list of texts")
        for name in ("gt", "choices"):
            listed = row.get(name) or []
            if (name == "choices" or isinstance(listed, list)) and not _texts(listed):
                raise ValueError(f"{path}, line {number}: {name} must be a list of texts, found {listed!r}")
        if row["audio"].startswith(("http://", "https://")):
            raise ValueError(f"{path}, line {number}: audio is a URL; download the clips and give paths")
        gt = row.get("gt", row.get("answer_gt", ""))
        yield {"id": f"{number}", **row, "gt": gt, "audio": str(folder / row["audio"])}
    if not matched:
        raise ValueError(
            f"{path}: no row whose source matches {benchmark.source!r}; sources are {sorted(sources)[:12]}"
        )


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _librispeech(root: Path, benchmark: Benchmark) -> Iterator[Row]:
    for listing in sorted(root.glob("*/*/*.trans.txt")):
        for line in listing.read_text(encoding="utf-8").strip("\n").split("\n"):
            key, _, text = line.partition(" ")
            yield {"id": key, "audio": str(listing.with_name(f"{key}.flac")), "gt": text}


def _table(path: Path, expected: str = "", **form: Any) -> Iterator[dict[str, str]]:
    """Rows of a table with names in its first line; ``form``: how it is written, as for `csv.DictReader`."""
    if not path.is_file():
        raise ValueError(f"no file {path}" + (f": expected {expected}" if expected else ""))
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file, **form)


def _tsv(path: Path, escape: str | None = None, delimiter: str = "\t") -> Iterator[dict[str, str]]:
    """Rows of a table without quoting; ``escape``: the character removed before the one that it protects."""
    return _table(path, delimiter=delimiter, quoting=csv.QUOTE_NONE, escapechar=escape)


def _common_voice(root: Path, benchmark: Benchmark) -> Iterator[Row]:
    for row in _tsv(root / "test.tsv"):
        yield {"id": row["path"], "audio": str(root / "clips" / row["path"]), "gt": unquoted(row["sentence"])}


def _fleurs(root: Path, benchmark: Benchmark) -> Iterator[Row]:
    path = root / "test.tsv"
    if not path.is_file():
        raise ValueError(
            f"no file {path}: expected FLEURS' id, file name, transcription, ... in columns without a head"
        )
    for number, line in enumerate(path.read_text(encoding="utf-8").strip("\n").split("\n")):
        columns = line.split("\t")
        folder = root / "audio" / "test"
        yield {"id": f"{number}-{columns[1]}", "audio": str(folder / columns[1]), "gt": columns[2]}


def _aishell2(root: Path, benchmark: Benchmark) -> Iterator[Row]:
    places = dict(
        line.split(maxsplit=1) for line in (root / "wav.scp").read_text(encoding="utf-8").strip("\n").split("\n")
    )
    for line in (root / "trans.txt").read_text(encoding="utf-8").strip("\n").split("\n"):
        key, text = line.split(maxsplit=1)
        if key not in places:
            raise ValueError(f"{root / 'trans.txt'}: {key} has no clip in wav.scp")
        yield {"id": key, "audio": str(root / places[key].strip()), "gt": text.strip()}


def _covost2(root: Path, benchmark: Benchmark) -> Iterator[Row]:
    """``root`` is Common Voice of the source language: clips/ with covost_v2.SRC_TGT.test.tsv next to it."""
    listings = [p for p in sorted(root.glob("covost_v2.*.test.tsv")) if re.search(benchmark.source or "", p.name)]
    if len(listings) != 1:
        raise ValueError(
            f"expected one covost_v2.SRC_TGT.test.tsv of {benchmark.source!r} in {root}, found {len(listings)}"
        )
    # As get_covost_splits.py writes and reads it: a quote in a sentence is escaped in the file.
    for row in _tsv(listings[0], escape="\\"):
        yield {"id": row["path"], "audio": str(root / "clips" / row["path"]), "gt": row["translation"]}


def _meld(root: Path, benchmark: Benchmark) -> Iterator[Row]:
    for row in _table(root / "test_sent_emo.csv"):
        key = f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}"
        yield {"id": key, "audio": clip_named(root / "test", key), "gt": row["Emotion"]}


def _vocalsound(root: Path, benchmark: Benchmark) -> Iterator[Row]:
    names = {row["mid"]: row["display_name"] for row in _table(root / "class_labels_indices_vs.csv")}
    for row in json.loads((root / "datafiles" / "te.json").read_text(encoding="utf-8"))["data"]:
        name = Path(row["wav"]).name
        labels = [names[mid] for mid in row["labels"].split(",")]
        yield {"id": name, "audio": str(root / "audio_16k" / name), "gt": labels[0], "choices": [*names.values()]}


def _clotho(root: Path, benchmark: Benchmark) -> Iterator[Row]:
    for row in _table(root / "clotho_captions_evaluation.csv", "file_name, caption_1 to caption_5"):
        captions = [text.strip() for name, text in row.items() if name.startswith("caption_") and text.strip()]
        yield {"id": row["file_name"], "audio": str(root / "evaluation" / row["file_name"]), "gt": captions}


def _audiocaps(root: Path, benchmark: Benchmark) -> Iterator[Row]:
    """test.csv; the clips are the user's own, in audio/ or test/, as VIDEO, VIDEO_START or YVIDEO, in any format."""
    captions: dict[tuple[str, str], list[str]] = {}
    for row in _table(root / "test.csv", "audiocap_id, youtube_id, start_time, caption"):
        captions.setdefault((row["youtube_id"], row["start_time"]), []).append(row["caption"].strip())
    folder = root / "audio" if (root / "audio").is_dir() else root / "test"
    for (video, start), texts in captions.items():
        stems = [f"{y}{name}" for name in (f"{video}_{start}", video) for y in ("", "Y")]
        there = [clip for stem in stems if Path(clip := clip_named(folder, stem)).is_file()]
        yield {"id": f"{video}_{start}", "audio": there[0] if there else clip_named(folder, stems[0]), "gt": texts}


def _earnings(root: Path, benchmark: Benchmark) -> Iterator[Row]:
    """A folder of revdotcom/speech-datasets: media/NAME.mp3 and its words, transcripts/nlp_references/NAME.nlp.

    Of Earnings-22 the major dialect family is the group (metadata.csv). Marks of sounds and of what nobody understood
    ("<laugh>", "<inaudible>") are no words.
    """
    listings = sorted((root / "transcripts" / "nlp_references").glob("*.nlp"))
    dialects = {}
    if (root / "metadata.csv").is_file():
        dialects = {row["File ID"]: row["Major Dialect Family"] for row in _table(root / "metadata.csv")}
    for path in listings:
        words = [
            f"{row.get('prepunctuation', '')}{row['token']}{row['punctuation']}"
            for row in _tsv(path, delimiter="|")
            if not re.fullmatch("<[^>]*>", row["token"])
        ]
        clip = clip_named(root / "media", path.stem)
        yield {"id": path.stem, "audio": clip, "gt": " ".join(words), "group": dialects.get(path.stem)}


READERS: dict[str, Callable[[Path, Benchmark], Iterator[Row]]] = {
    "jsonl": lambda root, benchmark: _jsonl(root, benchmark, root.parent),
    "librispeech": _librispeech,
    "common_voice": _common_voice,
    "fleurs": _fleurs,
    "aishell2": _aishell2,
    "covost2": _covost2,
    "meld": _meld,
    "vocalsound": _vocalsound,
    "clotho": _clotho,
    "audiocaps": _audiocaps,
    "earnings": _earnings,
    "airbench_foundation": own_questions.airbench_foundation,
    "airbench_chat": own_questions.airbench_chat,
    "mmau": own_questions.mmau,
    "mmar": own_questions.mmar,
    "mmsu": own_questions.mmsu,
    "voicebench": own_questions.voicebench,
    "sakura": own_questions.sakura,
    "big_bench_audio": own_questions.big_bench_audio,
    "muchomusic": muchomusic_rows,
}
# Readers that can show options in another order.
SHUFFLED = ("mmau", "mmar", "mmsu", "muchomusic")
