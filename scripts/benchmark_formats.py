"""Reading speed from the formats of other projects, where they are, against our own shards, in the same run.

    python scripts/benchmark_formats.py [CLIPS] [SECONDS] [ROUNDS]

The same FLAC clips of recorded speech are written by each project's own library (those that are installed), imported
with ``audio=in_place`` and read in one shuffled order: byte range -> checksum -> FLAC -> log-mel. CPU time of a process
as in ``benchmark_loader.py``, the best of ROUNDS rounds with the formats in turn; the mel frames must be equal.
"""

from __future__ import annotations

import io
import itertools
import json
import sys
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import soundfile
import torch
from benchmark_loader import MEL_BINS, cpu_seconds, ours, speech

from qa_train.command_line.command_table import run
from qa_train.data.audio.waveform import SAMPLE_RATE
from qa_train.data.clips import Clip, ClipReader
from qa_train.data.shards.index import load_index
from qa_train.data.shards.writer import ShardWriter
from qa_train.eval.eval_sets import clips_of

SIZES: dict[str, int] = {}


def shards(raws: dict[str, bytes], out: Path) -> None:
    """Ours."""
    with ShardWriter(out / "clips.tar", max_samples=len(raws)) as writer:
        for key, raw in raws.items():
            writer.write(key, {"text": "a sentence"}, [raw], extension=["flac"])


def webdataset(raws: dict[str, bytes], out: Path) -> None:
    """KEY.flac and KEY.txt, by webdataset's writer."""
    from webdataset import TarWriter

    with TarWriter(str(out / "clips.tar")) as tar:
        for key, raw in raws.items():
            tar.write({"__key__": key, "flac": raw, "txt": "a sentence"})


def nemo(raws: dict[str, bytes], out: Path) -> None:
    """``audio_0.tar`` and its manifest, whose writer is a script of NeMo's repository: the same layout."""
    with tarfile.open(out / "audio_0.tar", "w") as tar:
        for key, raw in raws.items():
            member = tarfile.TarInfo(f"{key}.flac")
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    rows = [
        {"audio_filepath": f"{key}.flac", "duration": SIZES[key] / SAMPLE_RATE, "text": "a sentence", "shard_id": 0}
        for key in raws
    ]
    (out / "tarred_audio_manifest.json").write_text("".join(json.dumps(row) + "\n" for row in rows))


def lhotse(raws: dict[str, bytes], out: Path) -> None:
    """Shar, by lhotse, with the files as they are."""
    from lhotse import CutSet, Recording, SupervisionSegment

    cuts = []
    for key, raw in raws.items():
        cut = Recording.from_bytes(raw, key).to_cut()
        cut.supervisions = [SupervisionSegment(key, key, 0.0, cut.duration, text="a sentence")]
        cuts.append(cut)
    CutSet.from_cuts(cuts).to_shar(out, fields={"recording": "original"}, shard_size=len(raws), verbose=False)


def mosaic(raws: dict[str, bytes], out: Path) -> None:
    """MDS, by mosaicml-streaming."""
    from streaming import MDSWriter

    columns = {"audio": "bytes", "text": "str"}
    with MDSWriter(out=str(out / "train"), columns=columns) as writer:
        for raw in raws.values():
            writer.write({"audio": raw, "text": "a sentence"})


def huggingface(raws: dict[str, bytes], out: Path) -> None:
    """Parquet, by datasets."""
    from datasets import Audio, Dataset

    cells = [{"bytes": raw, "path": f"{key}.flac"} for key, raw in raws.items()]
    table = Dataset.from_dict({"audio": cells, "text": ["a sentence"] * len(cells)})
    table.cast_column("audio", Audio(decode=False)).to_parquet(out / "train-00000-of-00001.parquet")


FORMATS: dict[str, tuple[Callable[[dict[str, bytes], Path], None], str, str]] = {
    "own shards": (shards, "", ""),
    "WebDataset": (webdataset, "webdataset", "clips.tar"),
    "NeMo, tarred": (nemo, "nemo", ""),
    "Lhotse Shar": (lhotse, "lhotse", ""),
    "MosaicML MDS": (mosaic, "mosaic", ""),
    "Hugging Face Parquet": (huggingface, "huggingface", ""),
}


def indexed(name: str, raws: dict[str, bytes], root: Path) -> list[Clip]:
    """The clips of a format, where its library wrote them. ImportError: it is not installed."""
    write, corpus, file = FORMATS[name]
    foreign, out = root / "foreign", root / "in_place"
    foreign.mkdir(parents=True)
    write(raws, foreign)
    if not corpus:
        out = foreign
    else:
        run("data import", [corpus, f"path={foreign / file}", f"out={out}", "audio=in_place", "fields.license=own"])
    rows = [(str(path), row) for path in sorted(out.glob("*.tar")) for row in load_index(str(path)).table.to_pylist()]
    clips = [clip for path, row in rows for clip in clips_of(path, row)]
    if len(clips) != len(raws):
        raise ValueError(f"{name}: {len(clips)} of {len(raws)} clips")
    return clips


def main() -> None:
    words = [float(word) for word in sys.argv[1:]]
    number, seconds, rounds = (*words, *(100, 10.0, 3)[len(words) :])[:3]
    torch.set_num_threads(1)
    raws: dict[str, bytes] = {}
    for i, wave in enumerate(itertools.islice(speech(seconds), int(number))):
        file = io.BytesIO()
        soundfile.write(file, wave, SAMPLE_RATE, format="FLAC")
        raws[f"clip{i:06d}"], SIZES[f"clip{i:06d}"] = file.getvalue(), len(wave)
    order = np.random.default_rng(0).permutation(len(raws))
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, list[Clip]] = {}
        for name in FORMATS:
            with suppress(ImportError):
                found[name] = indexed(name, raws, Path(folder) / name.replace(" ", "_"))
        frames = {name: sorted(ours(clips, ClipReader(MEL_BINS))) for name, clips in found.items()}
        if any(each != frames["own shards"] for each in frames.values()):
            raise ValueError("the formats differ in their mel frames")
        best = dict.fromkeys(found, float("inf"))
        for _ in range(int(rounds)):
            for name, clips in found.items():
                spent, _ = cpu_seconds(lambda clips=clips: ours([clips[i] for i in order], ClipReader(MEL_BINS)))
                best[name] = min(best[name], spent)
    print(f"{len(raws)} FLAC clips of {seconds:g} s, {MEL_BINS} mel bins, best of {int(rounds)}, CPU time")
    for name in FORMATS:
        if name not in best:
            print(f"{name:<22} its library is not installed")
            continue
        print(
            f"{name:<22} {1000 * best[name] / len(raws):6.2f} ms a clip, {best[name] / best['own shards']:.2f} of ours"
        )


if __name__ == "__main__":
    main()
