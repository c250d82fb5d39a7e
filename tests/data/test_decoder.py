"""The killable decoder: equal to decoding in place, and alive after hangs and crashes."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from qa_train.data.audio import decoder as decoder_module
from qa_train.data.audio.decoder import DecoderEnded, KillableDecoder
from qa_train.data.audio.waveform import BadAudio, read_clip
from qa_train.data.clips import Clip, ClipReader, SkipSample
from qa_train.data.shards.index import load_index
from qa_train.data.shards.writer import ShardWriter
from tests.data import faulty
from tests.data.conftest import noise
from tests.data.hostile import encoded

FLAC = encoded("FLAC")


@pytest.fixture
def decoder() -> Iterator[KillableDecoder]:
    one = KillableDecoder(10)
    yield one
    one.close()


def test_it_decodes_as_in_place(decoder: KillableDecoder) -> None:
    for raw in (FLAC, encoded("WAV", "PCM_16", noise(20, rate=44_100), 44_100), encoded("OGG", "OPUS")):
        wave = read_clip(raw)
        assert np.array_equal(decoder.read_indexed(raw, len(wave)), wave)
    assert decoder.read_indexed(FLAC, 4800).flags.writeable
    with pytest.raises(BadAudio, match="not a readable audio file"):
        decoder.read_indexed(b"nonsense", 4800)
    with pytest.raises(BadAudio, match="4800 samples at 16 kHz, the index has 1600"):
        decoder.read_indexed(FLAC, 1600)
    again = pickle.loads(pickle.dumps(decoder))
    assert np.array_equal(again.read_indexed(FLAC, 4800), read_clip(FLAC))


def test_a_hang_is_killed_and_the_next_clip_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    faulty.install(monkeypatch)
    one = KillableDecoder(0.3)
    started = time.monotonic()
    with pytest.raises(DecoderEnded, match=r"no result after 0\.3 s and was killed"):
        one.read_indexed(b"hang", 4800)
    assert time.monotonic() - started < 10
    one.timeout_s = 10
    assert len(one.read_indexed(FLAC, 4800)) == 4800
    one.close()


def test_a_child_that_reads_nothing_is_killed_too() -> None:
    """Its request does not fit into the socket."""
    one = KillableDecoder(30)
    one.read_indexed(FLAC, 4800)
    one.timeout_s = 0.3
    assert one._child is not None
    os.kill(one._child.pid, signal.SIGSTOP)
    with pytest.raises(DecoderEnded, match=r"no result after 0\.3 s and was killed"):
        one.read_indexed(bytes(4 << 20), 4800)
    one.close()


def test_one_that_nobody_waits_for_is_killed(decoder: KillableDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    faulty.install(monkeypatch)
    asked: list[float] = []
    with pytest.raises(DecoderEnded, match="given up"):
        decoder.read_clip(b"hang", max_duration_s=60, given_up=lambda: bool(asked.append(0)) or len(asked) > 20)
    assert len(decoder.read_clip(FLAC, max_duration_s=60)) == 4800
    with pytest.raises(BadAudio, match=r"longer than max_duration_s=0\.2"):
        decoder.read_clip(FLAC, max_duration_s=0.2)


def test_one_that_was_interrupted_gives_no_other_clip_s_sound(decoder: KillableDecoder) -> None:
    other = encoded("FLAC", wave=noise(0.3, seed=1))
    asked: list[float] = []

    def interrupted() -> bool:
        asked.append(0)
        if len(asked) > 3:
            raise KeyboardInterrupt
        return False

    decoder.read_indexed(FLAC, 4800)
    with pytest.raises(KeyboardInterrupt):
        decoder.read_clip(FLAC, max_duration_s=60, given_up=interrupted)
    assert np.array_equal(decoder.read_indexed(other, 4800), read_clip(other))


def test_a_clip_that_nobody_wants_any_more_costs_no_child(decoder: KillableDecoder) -> None:
    decoder.read_indexed(FLAC, 4800)
    first = decoder._child
    with pytest.raises(DecoderEnded, match="given up"):
        decoder.read_clip(FLAC, max_duration_s=60, given_up=lambda: True)
    assert decoder._child is first


def test_threads_that_end_cost_no_clip(decoder: KillableDecoder) -> None:
    """The kernel ends a child with the thread that started it."""
    for _ in range(3):
        with ThreadPoolExecutor(1) as threads:
            assert len(threads.submit(decoder.read_indexed, FLAC, 4800).result()) == 4800


def test_what_the_launcher_set_does_no_harm(decoder: KillableDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    faulty.install(monkeypatch)
    monkeypatch.setattr(sys, "path", [Path(place) for place in sys.path])
    socket.setdefaulttimeout(30)
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert len(decoder.read_indexed(FLAC, 4800)) == 4800
        with pytest.raises(DecoderEnded, match="its status is not known"):
            decoder.read_indexed(b"crash", 4800)
        assert len(decoder.read_indexed(FLAC, 4800)) == 4800
    finally:
        socket.setdefaulttimeout(None)
        signal.signal(signal.SIGCHLD, before)


def test_a_crash_is_named_and_the_next_clip_decodes(decoder: KillableDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    faulty.install(monkeypatch)
    for _ in range(2):
        with pytest.raises(DecoderEnded, match=r"died .signal 11, Segmentation fault"):
            decoder.read_indexed(b"crash", 4800)
    assert len(decoder.read_indexed(FLAC, 4800)) == 4800


def test_a_child_that_was_killed_between_two_clips_costs_none(decoder: KillableDecoder) -> None:
    for _ in range(2):
        assert len(decoder.read_indexed(FLAC, 4800)) == 4800
        assert decoder._child is not None
        os.kill(decoder._child.pid, signal.SIGKILL)
        os.waitid(os.P_PID, decoder._child.pid, os.WEXITED | os.WNOWAIT)
    assert len(decoder.read_indexed(FLAC, 4800)) == 4800


def test_too_much_memory_is_an_error_of_the_clip(decoder: KillableDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    faulty.install(monkeypatch)
    decoder.start()
    first = decoder._child
    with pytest.raises(BadAudio, match="Unable to allocate"):
        decoder.read_indexed(b"huge", 4800)
    assert decoder._child is first


def test_a_child_that_does_not_start_is_no_fault_of_the_clip(
    decoder: KillableDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(decoder_module, "_PROGRAM", "raise SystemExit(3)")
        with pytest.raises(RuntimeError, match=r"does not start .exit code 3"):
            decoder.read_indexed(FLAC, 4800)
    assert len(decoder.read_indexed(FLAC, 4800)) == 4800


def test_it_is_no_fork(decoder: KillableDecoder) -> None:
    """The libraries, files and locks of its parent are not its own: a GPU, a model, sockets of clients."""
    read, write = os.pipe()
    os.set_inheritable(write, True)
    decoder.read_indexed(FLAC, 4800)
    assert decoder._child is not None
    pid = decoder._child.pid
    assert sorted(path.name for path in Path(f"/proc/{pid}/fd").iterdir()) == ["0", "1", "2"]
    assert "libtorch" in Path("/proc/self/maps").read_text()
    assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()
    os.close(write)
    os.close(read)


def test_the_child_ends_with_its_parent() -> None:
    one = KillableDecoder(10)
    one.read_indexed(FLAC, 4800)
    assert one._child is not None
    pid = one._child.pid
    # What the parent's death does: the socket closes.
    one._child.link.close()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    one._child = None


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_one_that_hangs_ends_with_its_parent() -> None:
    program = (
        "from qa_train.data.audio import decoder\n"
        f"decoder._PROGRAM = {faulty.PROGRAM!r}\n"
        "one = decoder.KillableDecoder(60)\n"
        "told = []\n"
        "def given_up():\n"
        "    one._child.is_ready and not told and told.append(print(one._child.pid, flush=True))\n"
        "one.read_clip(b'hang', max_duration_s=1, given_up=given_up)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    until = time.monotonic() + 10
    while _lives(pid):
        assert time.monotonic() < until
        time.sleep(0.02)


def _lives(pid: int) -> bool:
    """Whether it is there, and not only its exit code, which nobody may read in a container."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_of_a_dataloader_each_have_their_own(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a.tar") as writer:
        for i in range(6):
            writer.write(f"k{i}", {}, noise(0.3 + i / 10, seed=i))
    rows = load_index(str(tmp_path / "a.tar")).table.to_pylist()
    clips = [
        Clip(r["key"], str(tmp_path / "a.tar"), r["key"], r["offsets"][0], r["sizes"][0], r["crc32c"][0],
             r["num_samples"][0])
        for r in rows
    ]  # fmt: skip
    killable, plain = ClipReader(80, decode_timeout_s=10), ClipReader(80)
    killable.wave(clips[0])
    loader = DataLoader(clips, batch_size=1, num_workers=2, collate_fn=lambda c: killable.wave(c[0]))  # type: ignore[arg-type]
    for clip, wave in zip(clips, loader, strict=True):
        assert np.array_equal(wave, plain.wave(clip))
    bad = Clip("x", clips[0].shard, "x", clips[0].offset, clips[0].size, 0, clips[0].num_samples)
    with pytest.raises(SkipSample, match="checksum"):
        killable.wave(bad)
