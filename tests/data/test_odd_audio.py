"""Every container gives all of its sound, or is refused with format, finding and remedy, wherever it is read."""

from __future__ import annotations

import io
import json
import re
import shutil
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_pipelines.corpora.base import Recording
from data_pipelines.corpora.recordings import wave_of
from qa_train.config import StorageConfig
from qa_train.data.audio.waveform import BadAudio, decoded_length, describe, read_clip, read_frames, read_header
from qa_train.data.shards.index import build_index
from qa_train.data.tools.interchange import jsonl_to_shards
from qa_train.data.tools.validate import validate_shard
from qa_train.eval.predict import duration_s
from tests.data.hostile import encoded
from tests.data.odd_audio import FFMPEG, FOLDER, ID3V2, MEDIA, REFUSED, SLACK_S, WHOLE, raw, seconds


def lengths(source: bytes | Path) -> set[int]:
    """By the header, decoded block by block, and decoded at once: samples at 16 kHz."""
    frames, rate = read_header(source)
    clip = read_clip(source)
    return {round(frames * 16_000 / rate + 1e-6), decoded_length(source), len(clip)}


@pytest.mark.parametrize("name", WHOLE)
def test_all_of_the_sound_is_read(name: str, tmp_path: Path) -> None:
    content, expected = WHOLE[name]
    found = lengths(content)
    assert max(found) - min(found) <= 1
    if expected:
        assert max(found) / 16_000 == pytest.approx(expected, abs=SLACK_S * max(1, round(expected / 0.7)))
    # A name that lies changes nothing.
    path = tmp_path / "clip.mp3"
    path.write_bytes(content)
    assert lengths(path) == found
    assert np.array_equal(read_clip(path), read_clip(content))
    # Loud, then quiet, as often as the sound was joined.
    if expected > 1:
        wave = read_clip(content)
        half = len(wave) // round(expected / 0.7)
        parts = [wave[at : at + half // 3].std() for at in range(0, len(wave) - half // 2, half)]
        assert min(parts) > 0.05


@pytest.mark.parametrize("name", MEDIA)
def test_other_formats_are_decoded_by_the_extra(name: str) -> None:
    pytest.importorskip("av", reason="extra media")
    found = lengths(raw(name))
    assert max(found) - min(found) <= 1
    assert max(found) / 16_000 == pytest.approx(seconds(name), abs=SLACK_S)
    assert read_clip(raw(name))[: 16_000 // 3].std() > 0.05
    assert lengths(ID3V2 + raw(name)) == found
    assert re.search(r"\d+ Hz, [12] channels", describe(raw(name)))


def test_eight_channels_are_read() -> None:
    """PyAV counts nine planes of them: the process died."""
    pytest.importorskip("av", reason="extra media")
    wave = np.random.default_rng(0).integers(-9999, 9999, (11_200, 8), np.int16)
    content = encoded_media("matroska", "flac", wave)
    assert np.array_equal(read_frames(content, 0, 11_200), wave / np.float32(32768))
    assert np.allclose(read_clip(content), wave.mean(axis=1) / 32768, atol=1e-6)


def test_a_wav_of_a_codec_that_libsndfile_lacks_is_decoded_by_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av", reason="extra media")
    tone = (9999 * np.sin(np.arange(32_000) / 9)).astype(np.int16)[:, None]
    content = encoded_media("wav", "g722", tone)
    assert lengths(content) == {32_000}
    assert np.corrcoef(read_clip(content)[22:], tone[:-22, 0])[0, 1] > 0.99  # the filters of G.722 delay by 22 samples
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BadAudio, match=r"^WAV: libsndfile does not read it.*qa-train\[media\]"):
        read_header(content)


def test_the_length_is_that_of_the_sound() -> None:
    """Matroska states that of its longest stream; iTunes counts in what the decoder drops at the start."""
    pytest.importorskip("av", reason="extra media")
    short, long = (np.random.default_rng(0).integers(-9999, 9999, (n, 1), np.int16) for n in (11_200, 32_000))
    assert read_header(encoded_media("matroska", "flac", short, long)) == (11_200, 16_000)
    priming = b" 00000000 00000840 00000000 0000000000001000 00000000 00000000 00000000 00000000"
    boxes = ((b"mean", b"com.apple.iTunes"), (b"name", b"iTunSMPB"), (b"data", priming))
    fields = b"".join(box(kind, bytes(8 if kind == b"data" else 4) + text) for kind, text in boxes)
    content = bytearray(encoded_media("ipod", "aac", long, rate=8000))
    end = content.index(b"ilst") - 4 + int.from_bytes(content[content.index(b"ilst") - 4 : content.index(b"ilst")])
    for kind in (b"moov", b"udta", b"meta", b"ilst"):
        at = content.index(kind) - 4
        content[at : at + 4] = (int.from_bytes(content[at : at + 4]) + len(box(b"----", fields))).to_bytes(4)
    content[end:end] = box(b"----", fields)
    frames, _ = read_header(bytes(content.replace(b"edts", b"free")))
    assert 32_000 - 2112 < frames < 32_000 + 1024


def box(kind: bytes, body: bytes) -> bytes:
    """A box of an MP4."""
    return struct.pack(">I", 8 + len(body)) + kind + body


def encoded_media(container: str, codec: str, *waves: np.ndarray, rate: int = 16_000) -> bytes:
    """A file with a stream for each of the waves, int16 [n, channels]."""
    import av

    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        layouts = ["mono" if wave.shape[1] == 1 else "7.1" for wave in waves]
        streams = [file.add_stream(codec, rate=rate, layout=layout) for layout in layouts]
        for stream, layout, wave in zip(streams, layouts, waves, strict=True):
            frame = av.AudioFrame.from_ndarray(wave.reshape(1, -1), format="s16", layout=layout)
            frame.sample_rate, frame.pts = rate, 0
            for packet in (*stream.encode(frame), *stream.encode(None)):
                file.mux(packet)
    return out.getvalue()


@pytest.mark.parametrize("name", MEDIA)
def test_without_the_extra_they_are_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BadAudio, match=r"(MP4|AAC|CAF|WebM|WMA|Ogg [FOS]).*ffmpeg -i IN OUT.flac.*qa-train\[media\]"):
        read_header(raw(name))


def test_without_the_extra_a_damaged_file_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    damaged = bytearray(encoded("OGG", "OPUS"))
    damaged[81] ^= 5
    with pytest.raises(BadAudio, match=r"^not a readable audio file: Ogg Opus: .*malformed"):
        read_header(bytes(damaged))


@pytest.mark.parametrize("name", [name for name in MEDIA if name != "speex.spx"])
@pytest.mark.parametrize("share", [0.4, 0.7, 0.95])
def test_cut_media_are_refused(name: str, share: float) -> None:
    pytest.importorskip("av", reason="extra media")
    content = raw(name)
    if name == "wma.wma" and share == 0.95:
        return  # the cut takes the seek table only
    with pytest.raises(BadAudio, match=r"damaged or cut|decoder stopped"):
        read_clip(content[: int(len(content) * share)])


@pytest.mark.parametrize("name", REFUSED)
def test_the_rest_is_refused_by_name(name: str) -> None:
    content, message = REFUSED[name]
    for read in (read_header, read_clip, decoded_length):
        with pytest.raises(BadAudio, match=message) as caught:
            read(content)
        assert "\n" not in str(caught.value)
        assert "BytesIO" not in str(caught.value)


@pytest.mark.parametrize(
    "kind", [("FLAC", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("MP3", None), ("OGG", "OPUS")]
)
def test_a_file_cut_anywhere_is_refused(kind: tuple[str, str | None]) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(1).normal(0, 0.1, 24_000), 24_000, format=kind[0], subtype=kind[1])
    whole = buffer.getvalue()
    for cut in np.linspace(60, len(whole) - 70, 23).astype(int):
        with pytest.raises(BadAudio):
            read_clip(whole[:cut])


def test_segments_lie_where_a_whole_decoder_has_them() -> None:
    for name in ("vbr_pipe.mp3", "pipe.flac", "two Ogg Opus streams", "pipe.wav", "FLAC whose header says too little",
                 "GSM of an odd size", "Vorbis of several pages"):  # fmt: skip
        content = WHOLE[name][0]
        frames, _ = read_header(content)
        whole = read_frames(content, 0, frames)
        assert len(whole) == frames
        for start, stop in ((0, 100), (frames // 3, frames // 2), (frames - 50, frames)):
            assert np.array_equal(read_frames(content, start, stop), whole[start:stop])
        with pytest.raises(BadAudio, match="damaged or cut"):
            read_frames(content, frames - 10, frames + 10)


def test_a_place_that_cannot_be_reached_is_a_fault_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise soundfile.LibsndfileError(39)

    monkeypatch.setattr(soundfile.SoundFile, "seek", refused)
    with pytest.raises(BadAudio, match=r"FLAC: the decoder stopped: .*ffmpeg"):
        read_frames(raw("id.flac"), 5, 10)


def shard(folder: Path) -> Path:
    """All that is read whole, and all that is not, each with a transcript."""
    with tarfile.open(folder / "odd.tar", "w") as tar:
        for number, (name, content) in enumerate([*WHOLE.items(), *REFUSED.items()]):
            key = f"{number:03d}"
            text = json.dumps({"text": name}).encode()
            for member, data in ((f"{key}.mp3", content[0]), (f"{key}.json", text)):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder / "odd.tar"


def test_index_and_validation_agree(tmp_path: Path) -> None:
    path = shard(tmp_path)
    (index,) = build_index([path])
    texts = {row["key"]: json.loads(row["meta"])["text"] for row in index.table.to_pylist()}
    assert list(texts.values()) == list(WHOLE)
    for row in index.table.to_pylist():
        assert row["num_samples"] == [len(read_clip(WHOLE[texts[row["key"]]][0]))]
    messages = {int(problem.key): problem.detail for problem in index.problems}
    for number, (_, message) in enumerate(REFUSED.values(), start=len(WHOLE)):
        assert re.search(message, messages[number])
    report = validate_shard(str(path))
    assert report.records == len(WHOLE)
    assert [fault.reason for fault in report.faults] == ["bad audio"] * len(REFUSED)


def test_import_chats_and_evaluation_read_the_same(tmp_path: Path) -> None:
    for number, (content, _) in enumerate(WHOLE.values()):
        # Its own name does not matter, only that it is one of audio.
        path = tmp_path / f"{number}.wav"
        path.write_bytes(content)
        seconds = len(read_clip(content)) / 16_000
        assert len(wave_of(Recording(str(path)), 60, StorageConfig())) / 16_000 == seconds
        assert duration_s([path]) == pytest.approx(seconds, abs=1e-4)
    for number, (content, message) in enumerate(REFUSED.values()):
        path = tmp_path / f"bad{number}.wav"
        path.write_bytes(content)
        assert duration_s([path]) is None
        with pytest.raises(BadAudio, match=message):
            wave_of(Recording(str(path)), 60, StorageConfig())
        if number % 7 == 0:
            turns = [{"role": "user", "content": "<audio>?"}, {"role": "assistant", "content": "-"}]
            line = json.dumps({"messages": turns, "audios": [path.name]})
            (tmp_path / "a.jsonl").write_text(line)
            with pytest.raises(ValueError, match=message):
                jsonl_to_shards(tmp_path / "a.jsonl", tmp_path / "out.tar")


def test_chats_keep_media_under_their_own_type(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="extra media")
    shutil.copy(FOLDER / "aac.m4a", tmp_path / "a.m4a")
    shutil.copy(FOLDER / "webm.webm", tmp_path / "recording")
    turns = [{"role": "user", "content": "<audio><audio>?"}, {"role": "assistant", "content": "-"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turns, "audios": ["a.m4a", "recording"]}))
    (index,) = jsonl_to_shards(tmp_path / "a.jsonl", tmp_path / "out.tar")
    assert index.table["names"].to_pylist() == [["m4a", "1.webm"]]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="FFmpeg is not installed")
@pytest.mark.parametrize("name", FFMPEG)
def test_the_lengths_are_those_of_the_ffmpeg_here(name: str) -> None:
    samples, rate = FFMPEG[name]
    command = ["ffmpeg", "-v", "error", "-i", str(FOLDER / name), "-map", "0:a:0", "-ac", "1", "-f", "f32le", "-"]
    made = subprocess.run(command, capture_output=True, check=True).stdout
    assert len(made) // 4 / rate == pytest.approx(samples / rate, abs=SLACK_S)
    if name in MEDIA:
        pytest.importorskip("av", reason="extra media")
    reference, ours = np.frombuffer(made, np.float32), read_frames(raw(name), 0, read_header(raw(name))[0]).mean(axis=1)
    if read_header(raw(name))[1] == rate:
        n = min(len(reference), len(ours))
        # Versions of FFmpeg differ in how much of a codec's delay at the start they leave out.
        at = len(ours) - n if name.startswith("webm") else 0
        assert np.corrcoef(reference[:n], ours[at : at + n])[0, 1] > 0.999
