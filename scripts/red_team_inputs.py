"""The inputs of scripts/red_team.py: those of the tests, one by one, and random ones, by what reads them."""

from __future__ import annotations

import copy
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scripts.red_team import Attempt, apart, executed

ODD: list[Any] = [
    None, True, -1, 0, 1, 3, 2**31, 2**64, 10**9, 10**18, 1e9, 1e308, 5e-324, float("nan"), float("inf"), "", "x",
    "../../etc/passwd", "/etc/passwd", "os.system", "${oc.env:HOME}", "a\0b", "\ud800", "\x1b[2J", "(a+)+$", "x" * 5000,
    "pipe:touch executed", "file:///etc/passwd", "<script>alert(1)</script>", "data:audio/wav;base64,AAAA",
    [], [[]], ["x"] * 50, [None], {}, {"a": {"b": 1}}, {"rope_type": "x"}, {"_target_": "os.system"},
]  # fmt: skip


def flip_bit(draw: random.Random, raw: bytes) -> bytes:
    """One bit is another."""
    changed = bytearray(raw)
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def damage_bytes(draw: random.Random, raw: bytes) -> bytes:
    """Bits flipped, a piece overwritten, taken out, put in twice, or the end cut off."""
    if not raw:
        return draw.randbytes(8)
    start = draw.randrange(len(raw))
    end = min(len(raw), start + draw.choice([1, 2, 4, 16, 512]))
    kind = draw.randrange(5)
    if kind == 0:
        return flip_bit(draw, raw)
    if kind == 1:
        return raw[:start] + draw.randbytes(end - start) + raw[end:]
    if kind == 2:
        return raw[:start] + raw[end:]
    if kind == 3:
        return raw[:end] + raw[start:]
    return raw[:start]


def odd_value(draw: random.Random, content: Any) -> Any:
    """A copy of JSON content in which one field, at any depth, holds something else, is gone, or is new."""
    made = copy.deepcopy(content)
    place: Any = made
    while True:
        keys: list[Any] = sorted(place, key=str) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return draw.choice(ODD)
        key = draw.choice(keys)
        if not isinstance(place[key], dict | list) or not place[key] or draw.random() < 0.2:
            break
        place = place[key]
    if isinstance(place, dict) and draw.random() < 0.1:
        del place[key]
    elif isinstance(place, dict) and draw.random() < 0.05:
        place["_target_"] = "os.system"
    else:
        place[key] = draw.choice(ODD)
    return made


def flip_file(draw: random.Random, folder: Path) -> None:
    """Flip one bit of one of the files that a checkpoint was saved with."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in ("manifest.json", "evil.py")]
    path = draw.choice([p for p in files if p.stat().st_size])
    path.write_bytes(flip_bit(draw, path.read_bytes()))


def odd_json(draw: random.Random, folder: Path, names: tuple[str, ...]) -> None:
    """Put something odd into one field of one of these JSON files."""
    path = draw.choice([folder / name for name in names if (folder / name).is_file()])
    path.write_text(json.dumps(odd_value(draw, json.loads(path.read_text()))))


_MODEL_FILES = ("config.json", "tokenizer_config.json", "processor_config.json", "generation_config.json", "base.json",
                "adapter_config.json", "tokenizer.json")  # fmt: skip


def models(folder: Path, rounds: int, draw: random.Random) -> Iterator[Attempt]:
    """Whole checkpoints and adapters, as every command loads them."""
    from qa_train.model import load_model
    from tests.model import test_loading as tests
    from tests.model.stored import write_adapters, write_model

    whole, adapters = folder / "whole", folder / "adapters"
    apart(lambda: [str(write_model(whole)), str(write_adapters(adapters))])

    def attempt(
        kind: str, name: str, adapted: bool, manifest: bool, change: Callable[[Path], Any], must: str
    ) -> Attempt:
        def read(place: Path) -> None:
            made = place / "checkpoint-2"
            shutil.copytree(adapters if adapted else whole, made)
            if not manifest:
                (made / "manifest.json").unlink()
            (made / "evil.py").write_text(f"open({str(executed(folder))!r}, 'w')\n")
            change(made)
            load_model(made)

        return Attempt(kind, name, read, must)

    yield attempt("models: as saved", "a checkpoint", False, True, lambda f: None, "accept")
    yield attempt("models: as saved", "adapters", True, True, lambda f: None, "accept")
    for name, adapted, change in tests.CHANGED:
        yield attempt("models: of the tests", name, adapted, True, change, "refuse")
    for name, adapted, change, _ in tests.UNFIT:
        yield attempt("models: of the tests", name, adapted, False, change, "refuse")
    for name, changes, _ in tests.CONFIG:
        yield attempt("models: of the tests", name, False, False, tests.edit("config.json", **changes), "refuse")
    for file, changes in tests.BRINGS:
        if (whole / file).is_file():
            change = tests.edit(file, **changes)
            yield attempt("models: of the tests", f"code in {file}", False, False, change, "refuse")
    for changes, _ in tests.ODD:
        change = tests.edit("adapter_config.json", **changes)
        yield attempt("models: of the tests", f"adapters with {changes}", True, False, change, "refuse")
    for name, found, _ in tests.BASES:
        change = lambda f, g=found: tests.edit("base.json", **g(f))(f)  # noqa: E731
        yield attempt("models: of the tests", f"a base: {name}", True, False, change, "refuse")
    for number in range(rounds):
        adapted = number % 3 == 0
        for kind, manifest, act in (
            ("models: a bit, with manifest", True, flip_file),
            ("models: a bit, without", False, flip_file),
            ("models: a field, without", False, lambda d, f: odd_json(d, f, _MODEL_FILES)),
        ):
            own = random.Random(draw.random())
            # A changed weight is a weight, and some fields are of no importance.
            must = "refuse" if manifest else "either"
            yield attempt(kind, f"number {number}", adapted, manifest, lambda f, a=act, d=own: a(d, f), must)


def states(folder: Path, rounds: int, draw: random.Random) -> Iterator[Attempt]:
    """The states and manifests of a training, as a resume reads them."""
    from qa_train.train.job.states import fault
    from qa_train.utils.manifest import damage
    from tests.train import test_states as tests

    def said(reason: str | None) -> None:
        if reason is not None:
            raise ValueError(reason)

    def forged(zero: bool, forge: Callable[[Path, Path], Any]) -> Callable[[Path], None]:
        def read(place: Path) -> None:
            checkpoint = tests.make(place, 2, zero=zero)
            forge(checkpoint, executed(folder))
            # The forger's checksums are right.
            tests.commit(checkpoint, zero)
            said(fault(checkpoint))

        return read

    def other_manifest(own: random.Random) -> Callable[[Path], None]:
        def read(place: Path) -> None:
            checkpoint = tests.make(place, 2)
            odd_json(own, checkpoint, ("manifest.json",))
            said(damage(checkpoint))

        return read

    yield Attempt("states: as saved", "whole", forged(False, lambda f, out: None), "accept")
    yield Attempt("states: as saved", "ZeRO", forged(True, lambda f, out: None), "accept")
    for name, zero, forge in tests.FORGED:
        yield Attempt("states: of the tests", name, forged(zero, forge), "refuse")
    for number in range(rounds):
        own = random.Random(draw.random())
        flip = forged(number % 2 == 0, lambda f, out, d=own: flip_file(d, f))  # type: ignore[misc]
        yield Attempt("states: a bit, right checksums", f"number {number}", flip, "either")
        yield Attempt("states: a field of the manifest", f"number {number}", other_manifest(own), "either")


def indexes(folder: Path, rounds: int, draw: random.Random) -> Iterator[Attempt]:
    """Indexes of shards, as training and the tools read them."""
    import pyarrow.parquet

    from qa_train.data.shards.sidecar import SUFFIX
    from tests.data import test_gate as tests

    shard = apart(lambda: tests.good_shard(folder))
    row = apart(lambda: pyarrow.parquet.read_table(shard + SUFFIX).to_pylist()[2])
    whole = Path(shard + SUFFIX).read_bytes()

    def damaged(raw: bytes) -> Callable[[Path], None]:
        def read(place: Path) -> None:
            path = str(shutil.copy(shard, place / "x.tar"))
            Path(path + SUFFIX).write_bytes(raw)
            tests.read_all(path)

        return read

    yield Attempt("indexes: as made", "index", damaged(whole), "accept")
    for column, value in tests.CELLS:
        read = lambda p, c=column, v=value: tests.read_all(tests.tampered(shard, p, c, v))  # noqa: E731
        yield Attempt("indexes: of the tests", f"{column} = {value!r:.40}", read, "refuse")
    for entry, text in tests.FOOTERS:
        read = lambda p, e=(entry, text): tests.read_all(tests.tampered(shard, p, footer=e))  # noqa: E731
        yield Attempt("indexes: of the tests", f"footer {entry} = {text!r:.40}", read, "refuse")
    for number in range(rounds):
        column = draw.choice(sorted(row))
        found = row[column]
        if column == "meta":
            value = json.dumps(odd_value(draw, json.loads(found)))
        elif isinstance(found, str):
            value = draw.choice(["", "../x", "a\nb", "\x1b[2J", found * 2, found[:-1], "\ufeff" + found, "é"])
        elif isinstance(found, float):
            value = draw.choice([0.0, -1.0, 1e9, found * 2, found + 1e-9, float("nan")])
        else:
            value = [
                draw.choice([0, 1, -1, 2**31 - 1, 2**40, *found]) if column != "names" else draw.choice(ODD[14:26])
            ]
            value = value if column != "sample_rates" else [min(value[0], 2**31 - 1)]
        read = lambda p, c=column, v=value: tests.read_all(_written(tests.tampered, shard, p, c, v))  # noqa: E731
        yield Attempt("indexes: a cell", f"{column} = {value!r:.60}", read, "either")
        yield Attempt("indexes: bytes", f"number {number}", damaged(damage_bytes(draw, whole)), "either")


def _written(write: Callable[..., str], *given: Any) -> str:
    """The path that ``write`` returns; what parquet cannot hold cannot come from outside either."""
    try:
        return write(*given)
    except (OverflowError, UnicodeError, TypeError) as error:
        raise ValueError(f"no parquet file holds it: {type(error).__name__}") from error


_RECORD = {
    "text": "hello", "language": "en", "task": "asr", "translation": {"de": "hallo"}, "speaker": "a", "age": 30,
    "words": [{"word": "hello", "start": 0.0, "end": 0.2}], "events": [{"label": "dog", "start": 0.0, "end": 0.2}],
    "audios": ["flac"], "caption": "a voice", "id": "x",
    "messages": [
        {"role": "user", "content": [{"type": "audio", "audio_url": "a.flac"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "hello"},
    ],
}  # fmt: skip


def tars(folder: Path, rounds: int, draw: random.Random) -> Iterator[Attempt]:
    """Shards of others, as `qa-train data index` and `validate` read them."""
    from qa_train.data.shards.index import build_index, scan
    from qa_train.data.tools.validate import validate_shard
    from tests.data import hostile

    whole = hostile.good()
    sound = hostile.encoded("FLAC")

    def indexed(raw: bytes) -> Callable[[Path], None]:
        def read(place: Path) -> None:
            path = place / "x.tar"
            path.write_bytes(raw)
            if problems := scan(str(path), decode=True).problems:
                raise ValueError(problems[0].detail)

        return read

    def checked(raw: bytes) -> Callable[[Path], None]:
        def read(place: Path) -> None:
            path = place / "x.tar"
            path.write_bytes(whole)
            build_index([path])
            path.write_bytes(raw)
            if faults := validate_shard(str(path)).faults:
                raise ValueError(str(faults[0]))

        return read

    def record(meta: Any) -> bytes:
        return hostile.tar(("a.flac", sound), ("a.json", json.dumps(meta).encode()))

    yield Attempt("tars: as made", "four formats", checked(whole), "accept")
    yield Attempt("tars: as made", "a record", indexed(record({"text": "hello"})), "accept")
    for name, raw, _ in hostile.tars():
        yield Attempt("tars: of the tests", name, indexed(raw), "refuse")
    for name, members, _ in hostile.records():
        yield Attempt("tars: records of the tests", name, indexed(hostile.tar(*members)), "refuse")
    for number in range(rounds):
        yield Attempt("tars: bytes, without index", f"number {number}", indexed(damage_bytes(draw, whole)), "either")
        changed = damage_bytes(draw, whole)
        must = "either" if _same_members(changed, whole) else "refuse"
        yield Attempt("tars: bytes, with index", f"number {number}", checked(changed), must)
        yield Attempt(
            "tars: a field of a record", f"number {number}", indexed(record(odd_value(draw, _RECORD))), "either"
        )


def _same_members(one: bytes, other: bytes) -> bool:
    """Whether two tars hold the same (dates and rights are of no importance to anybody)."""
    try:
        return _contents(one) == _contents(other)
    except (tarfile.TarError, AttributeError, ValueError):
        return False


def _contents(raw: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        return [(m.name, archive.extractfile(m).read()) for m in archive if m.isfile()]  # type: ignore[union-attr]


def audio(folder: Path, rounds: int, draw: random.Random) -> Iterator[Attempt]:
    """Sound files in memory, as every reader of clips decodes them."""
    from qa_train.data.audio.waveform import decoded_length, read_clip, read_header
    from tests.data import odd_audio

    def decoded(raw: bytes) -> Callable[[Path], None]:
        def read(place: Path) -> None:
            length = decoded_length(raw)
            read_header(raw)
            if len(read_clip(raw, max_duration_s=600.0)) != length:
                raise AssertionError("two readers, two lengths")

        return read

    for name, (raw, _) in odd_audio.WHOLE.items():
        yield Attempt("audio: whole, of the tests", name, decoded(raw), "accept")
    for name, (raw, _) in odd_audio.REFUSED.items():
        yield Attempt("audio: of the tests", name, decoded(raw), "refuse")
    files = [raw for name in odd_audio.FFMPEG if name not in odd_audio.MEDIA for raw in [odd_audio.raw(name)]]
    for number in range(rounds * 3):
        raw = draw.choice(files)
        for _ in range(draw.choice([1, 1, 2, 8])):
            raw = damage_bytes(draw, raw)
        yield Attempt("audio: bytes", f"number {number}", decoded(raw), "either")


def settings(folder: Path, rounds: int, draw: random.Random) -> Iterator[Attempt]:
    """Words of the command line, and what `qa-train` makes of them."""
    from omegaconf import OmegaConf

    from qa_train.config.compose import compose_stage

    keys: dict[str, list[str]] = {}
    for stage in ("pretrain", "sft", "dpo"):
        made = OmegaConf.to_container(
            OmegaConf.structured(compose_stage(stage, ["experiment=smoke", "stage=" + stage]))
        )
        keys[stage] = sorted(_paths(made, ""))
    for _ in range(rounds * 3):
        stage = draw.choice(sorted(keys))
        value = draw.choice(ODD)
        text = value if isinstance(value, str) and draw.random() < 0.5 else json.dumps(value)
        word = f"{draw.choice(['', '', '+', '++', '~'])}{draw.choice(keys[stage])}={text}"
        read = lambda p, s=stage, w=word: compose_stage(s, ["experiment=smoke", "stage=" + s, w])  # noqa: E731
        yield Attempt("settings: a value", f"{stage} {word!r:.100}", read, "either")


def _paths(value: Any, prefix: str) -> Iterator[str]:
    for key, each in value.items():
        if isinstance(each, dict) and each:
            yield from _paths(each, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def requests(folder: Path, rounds: int, draw: random.Random) -> Iterator[Attempt]:
    """Requests of the server's clients, over the loopback interface; it has to answer the next client, too."""
    from tests.infer import test_hostile_clients as tests

    log = folder / "log"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        pid = os.fork()
        if pid == 0:
            _serve(listener, log)
    good = json.loads(tests.body("hello", tests.flac(0.5), temperature=0.5, max_tokens=5))

    def sent(raw: bytes) -> Callable[[Path], None]:
        def read(place: Path) -> None:
            answer = _exchange(port, raw)
            health = _exchange(port, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            if not health.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"the next client was answered {health[:80]!r}")
            line = answer.split(b"\r\n")[0].decode("latin-1")
            if line.startswith("HTTP/1.1 5"):
                raise RuntimeError(line)
            if not line.startswith("HTTP/1.1 2"):
                raise ValueError(line or "the connection was closed")

        return read

    def posted(content: Any) -> bytes:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        return tests.head(len(raw)) + raw

    def quiet(place: Path) -> None:
        if written := log.read_text(errors="replace").strip():
            raise RuntimeError(f"its log: {written[:300]!r}")

    try:
        _until_open(port)
        yield Attempt("requests: as sent", "a question with a clip", sent(posted(good)), "accept")
        for name, clips in tests.BOMBS:
            yield Attempt("requests: of the tests", name, sent(posted(tests.body(*clips))), "refuse")
        for number in range(rounds):
            yield Attempt("requests: a field", f"number {number}", sent(posted(odd_value(draw, good))), "either")
            bits = damage_bytes(draw, posted(good))
            yield Attempt("requests: bytes", f"number {number}", sent(bits), "either")
            head = damage_bytes(draw, tests.head(20)) + b'{"model": "m"}      '
            yield Attempt("requests: bytes of the header", f"number {number}", sent(head), "either")
        yield Attempt("requests: what the log holds", "nothing", quiet, "accept")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _serve(listener: socket.socket, log: Path) -> None:
    """The server, with a generator that answers at once; never returns."""
    import pytest
    import uvicorn

    from qa_train.infer import connections, server
    from qa_train.infer.server import application
    from tests.infer import test_hostile_clients as tests

    try:
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(written, 1)
        os.dup2(written, 2)
        patch = pytest.MonkeyPatch()
        service = tests.service(patch)
        # Half a request is waited for, but not for long.
        patch.setattr(connections, "HEADERS_S", 1.0)
        patch.setattr(server, "_BODY_FIRST_S", 1.0)
        config = uvicorn.Config(application(service), http=connections.Connection, log_level="warning")
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        os._exit(1)


def _until_open(port: int) -> None:
    for _ in range(200):
        if _exchange(port, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"):
            return


def _exchange(port: int, raw: bytes) -> bytes:
    """Send, and read an answer to its end, or until the server has closed the connection."""
    answer = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(raw)
            while not _is_whole(answer) and (part := client.recv(65536)):
                answer += part
    except ConnectionError:
        pass
    return answer


def _is_whole(answer: bytes) -> bool:
    head, found, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    return bool(found) and length is not None and len(body) >= int(length[1])


SECRET = "a-secret-of-this-machine"


def pages(folder: Path, rounds: int, draw: random.Random) -> Iterator[Attempt]:
    """Run folders of others, as the dashboard shows them: no file of this machine, no script, no key on the page."""
    from qa_train.commands.command_table import run as command
    from tests.test_dashboard import answered, make

    # Even a file that claims to be sound.
    (folder / "secret.ogg").write_text("OggS" + SECRET)

    def shown(change: Callable[[Path], Any]) -> Callable[[Path], None]:
        def read(place: Path) -> None:
            run = make(place / "run", "dpo", steps=8)
            answered(run, clip_bytes=300)
            change(run)
            command("dashboard", [str(place)])
            page = (place / "dashboard.html").read_text()
            if any(word in page for word in (SECRET, _encoded("OggS" + SECRET), "<script", "key-of-a-user")):
                raise AssertionError("the page holds what it must not")

        return read

    def clip(name: Any) -> Callable[[Path], None]:
        def change(run: Path) -> None:
            for path in (run / "held_out").glob("step-*/asr/predictions.jsonl"):
                rows = [json.loads(line) for line in path.read_text().splitlines()[:2]]
                path.write_text("".join(json.dumps({**row, "clip": name}) + "\n" for row in rows))

        return change

    def file(own: random.Random) -> Callable[[Path], None]:
        def change(run: Path) -> None:
            files = [p for p in sorted(run.rglob("*")) if p.suffix in (".json", ".jsonl", ".yaml")]
            path = own.choice(files)
            lines = path.read_text().splitlines()
            if path.suffix == ".jsonl" and own.random() < 0.7:
                place = own.randrange(len(lines))
                try:
                    lines[place] = json.dumps(odd_value(own, json.loads(lines[place])))
                except ValueError:  # the line that was cut
                    lines[place] = "null"
                path.write_text("\n".join(lines) + "\n")
            else:
                path.write_bytes(damage_bytes(own, path.read_bytes()))

        return change

    yield Attempt("pages: as saved", "a run", shown(lambda run: None), "accept")
    names = [*ODD, str(folder / "secret.ogg"), "../../../secret.ogg", "clips/../../../../secret.ogg", "https://a.b/c"]
    for name in names:
        yield Attempt("pages: a clip's name", f"{name!r:.60}", shown(clip(name)), "accept")
    for number in range(rounds):
        yield Attempt("pages: a damaged file", f"number {number}", shown(file(random.Random(draw.random()))), "either")


def _encoded(text: str) -> str:
    import base64

    return base64.b64encode(text.encode()).decode()[:-4]


KINDS: dict[str, Callable[[Path, int, random.Random], Iterator[Attempt]]] = {
    "models": models,
    "states": states,
    "indexes": indexes,
    "tars": tars,
    "audio": audio,
    "settings": settings,
    "requests": requests,
    "pages": pages,
}
