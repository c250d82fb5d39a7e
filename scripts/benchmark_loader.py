"""Reading speed on one core: our path from tar to log-mel against a plain WebDataset pipeline, in the same run.

    python scripts/benchmark_loader.py [CLIPS] [SECONDS] [ROUNDS]

Clips of recorded speech (the starter data), as FLAC in one shard, are read in a shuffled order by

- ours: index -> byte range -> checksum -> FLAC -> log-mel of the real frames (qa_train.data.clips.ClipReader);
- ours, killable: the same, with each clip decoded in a child process (data.decode_timeout_s);
- webdataset: wds.WebDataset + shuffle + soundfile decode + WhisperFeatureExtractor, padded to 30 s, as users of the
  stock Qwen2-Audio processor get it;
- webdataset, unpadded: the same with the extractor's padding off, for a comparison of the pipelines alone;
- webdataset, our mel: webdataset + soundfile decode + our log-mel, for a comparison of reading and decoding alone.

Every pass is a process of its own, as a loader's worker is, and ours begins as our workers do. Its CPU time counts (all
threads, children included), the best of ROUNDS rounds with the paths in turn; one torch thread. Times real time:
seconds of audio per second of CPU.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import webdataset
from transformers import WhisperFeatureExtractor

from qa_train.config import starter_dir
from qa_train.data.audio.mel import log_mel
from qa_train.data.audio.waveform import SAMPLE_RATE, read_clip
from qa_train.data.clips import Clip, ClipReader
from qa_train.data.shards.index import load_index
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.stores.storage import RangeReader
from qa_train.data.workers import begin_worker

MEL_BINS = 128
PADDED, UNPADDED = {"padding": "max_length"}, {"padding": "longest", "truncation": False}


def speech(seconds: float) -> Iterator[np.ndarray]:
    """The recorded speech of the starter data, joined and cut into clips of equal length, again and again."""
    path = str(starter_dir() / "speech-train.tar")
    reader, rest = RangeReader(), np.empty(0, np.float32)
    size = int(seconds * SAMPLE_RATE)
    while True:
        for row in load_index(path).table.to_pylist():
            wave = read_clip(reader.read(path, row["offsets"][0], row["sizes"][0]))
            rest = np.concatenate([rest, wave])
            while len(rest) >= size:
                yield rest[:size]
                rest = rest[size:]


def make_shard(path: Path, clips: int, seconds: float) -> list[Clip]:
    """One shard of FLAC clips, and its clips in a shuffled order."""
    with ShardWriter(path, max_samples=clips) as writer:
        for i, wave in enumerate(itertools.islice(speech(seconds), clips)):
            writer.write(f"clip{i:06d}", {"text": "a sentence", "language": "en"}, wave)
    columns = ("key", "offsets", "sizes", "crc32c", "num_samples")
    rows = zip(*(load_index(str(path)).table[name].to_pylist() for name in columns), strict=True)
    found = [Clip(key, str(path), key, *(value[0] for value in rest)) for key, *rest in rows]
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def ours(clips: list[Clip], reader: ClipReader) -> Iterable[int]:
    """Mel frames of each clip."""
    begin_worker()
    for clip in clips:
        mels, _ = reader.mels(clip)
        yield sum(mel.shape[1] for mel in mels)


def stock(path: Path, mel_frames: Callable[[np.ndarray, int], int]) -> Iterable[int]:
    """Mel frames of each clip from a WebDataset pipeline; ``mel_frames`` takes a waveform and its rate."""

    def decode(sample: dict[str, Any]) -> int:
        wave, rate = soundfile.read(io.BytesIO(sample["flac"]), dtype="float32")
        json.loads(sample["json"])
        return mel_frames(wave, rate)

    return webdataset.WebDataset(str(path), shardshuffle=False).shuffle(1000).map(decode)


def cpu_seconds(work: Callable[[], Iterable[int]]) -> tuple[float, int]:
    """CPU seconds of a pass over all clips, children included, and the number of clips."""

    def used() -> float:
        who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, who))

    result, answer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            before = used()
            count = sum(frames > 0 for frames in work())
            os.write(answer, json.dumps([used() - before, count]).encode())
        finally:
            os._exit(0)
    os.close(answer)
    with open(result, "rb") as file:  # noqa: PTH123 (a descriptor)
        spent, count = json.loads(file.read())
    os.waitpid(child, 0)
    return spent, count


def measure(clips: int, seconds: float, rounds: int) -> dict[str, dict[str, float]]:
    """Clips per CPU second and times real time of each path."""
    torch.set_num_threads(1)
    extractor = WhisperFeatureExtractor(feature_size=MEL_BINS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clips.tar"
        listed = make_shard(path, clips, seconds)

        def killable() -> Iterable[int]:
            reader = ClipReader(MEL_BINS, decode_timeout_s=30)
            yield from ours(listed, reader)
            # The child's CPU time counts once it has ended.
            reader.close()

        def extracted(options: dict[str, Any]) -> Callable[[np.ndarray, int], int]:
            def frames(wave: np.ndarray, rate: int) -> int:
                features = extractor(wave, sampling_rate=rate, return_tensors="pt", **options)
                return int(features.input_features.shape[2])

            return frames

        paths: dict[str, Callable[[], Iterable[int]]] = {
            "ours": lambda: ours(listed, ClipReader(MEL_BINS)),
            "ours, killable": killable,
            "webdataset": lambda: stock(path, extracted(PADDED)),
            "webdataset, unpadded": lambda: stock(path, extracted(UNPADDED)),
            "webdataset, our mel": lambda: stock(path, lambda wave, _: log_mel(wave, MEL_BINS).shape[1]),
        }
        best = dict.fromkeys(paths, float("inf"))
        for _ in range(rounds):
            for name, work in paths.items():
                spent, count = cpu_seconds(work)
                if count != clips:
                    raise ValueError(f"{name} gave {count} of {clips} clips")
                best[name] = min(best[name], spent)
    return {
        name: {"clips_per_s": clips / spent, "times_real_time": clips * seconds / spent} for name, spent in best.items()
    }


def main() -> None:
    words = [float(word) for word in sys.argv[1:]]
    clips, seconds, rounds = (*words, *(300, 5.0, 3)[len(words) :])[:3]
    result = measure(int(clips), seconds, int(rounds))
    print(f"{int(clips)} clips of {seconds:g} s, {MEL_BINS} mel bins, best of {int(rounds)}, CPU time of one core")
    for name, row in result.items():
        ratio = result["ours"]["clips_per_s"] / row["clips_per_s"]
        print(
            f"{name:<22} {row['clips_per_s']:8.0f} clips/s {row['times_real_time']:8.0f} x real time"
            f"   ours is {ratio:.2f} times as fast"
        )


if __name__ == "__main__":
    main()
