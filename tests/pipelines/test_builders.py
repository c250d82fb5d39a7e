"""Builders of SFT chats: what is spoken, asked and mixed, what is left out, and that it comes out the same again."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from data_pipelines import build_analysis
from data_pipelines.synthetic.acoustics import at_snr, coloured_noise, in_room, level
from data_pipelines.synthetic.speakable import one_line, unspeakable
from data_pipelines.synthetic.speakers import SpeakerOptions, open_speaker
from qa_train.command_line.command_table import run
from qa_train.data.audio.waveform import read_clip
from qa_train.data.shards.index import load_index
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.text.prompts import PromptBank

DIALOGUES: list[Any] = [
    {"instruction": "Name a fruit.", "input": "", "output": "An apple."},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there."},
                  {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "How are you today?"},
                  {"role": "assistant", "content": "Well, thank you."}]},
    {"conversations": [{"from": "human", "value": "Tell me a short joke."}, {"from": "gpt", "value": "Knock knock."}]},
    {"prompt": "Sort a list.", "response": "Use `sorted(xs)` for that."},
    {"instruction": "Open https://example.org and read it", "output": "No."},
    {"instruction": "word " * 70, "output": "Long."},
    {"instruction": "你好吗", "output": "好"},
    {"something": "else"},
]  # fmt: skip


@pytest.fixture
def dialogues(tmp_path: Path) -> Path:
    path = tmp_path / "text data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in DIALOGUES) + "{broken\n")
    return path


def records(folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for path in sorted(folder.glob("*.tar")):
        for row in load_index(str(path)).table.to_pylist():
            found[row["key"]] = json.loads(row["meta"]) | {"seconds": row["duration_s"], "clips": len(row["sizes"])}
    return found


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def test_voice_chat_speaks_what_can_be_spoken_and_counts_the_rest(dialogues: Path, tmp_path: Path, capsys: Any) -> None:
    words = [f"path={dialogues}", "samples_per_shard=2", "noise_share=1", "rooms=1", "license=CC0-1.0", "workers=1"]
    assert run("data voice-chat", [*words, f"out={tmp_path / 'one'}"]) == 0
    said = capsys.readouterr().out
    for reason in ("answer: code", "question: web address", "question: too long", "question: other script",
                   "unknown fields", "not JSON"):  # fmt: skip
        assert f"skipped 1: {reason}" in said
    found = records(tmp_path / "one")
    assert [len(tars(tmp_path / "one")), len(found)] == [2, 3]
    first = found["voice-chat-train-text_data-0000000"]
    assert first["text"] == "Name a fruit."
    assert first["messages"] == [{"role": "user", "content": "<audio>"}, {"role": "assistant", "content": "An apple."}]
    how = first["spoken"][0]
    assert how["noise"] == "coloured"
    assert 5 <= how["snr_db"] <= 30
    assert 0.15 <= how["rt60_s"] <= 0.6
    two = found["voice-chat-train-text_data-0000001"]
    assert two["clips"] == 2
    assert [m["role"] for m in two["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    bank = PromptBank.load()
    assert bank.sample(two, "chat", "chat", "k", 0, 0).num_clips == 2
    # The same again: nothing is made twice, and elsewhere the same bytes come out.
    stamps = [path.stat().st_mtime_ns for path in (tmp_path / "one").glob("*.tar")]
    run("data voice-chat", [*words, f"out={tmp_path / 'one'}"])
    assert stamps == [path.stat().st_mtime_ns for path in (tmp_path / "one").glob("*.tar")]
    run("data voice-chat", [*words[:-1], "workers=2", f"out={tmp_path / 'two'}"])
    assert tars(tmp_path / "one") == tars(tmp_path / "two")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("What is the capital of France?", None),
        ("List:\n- milk\n- bread", None),
        ("It's 5 o'clock (or later), isn't it?", None),
        ("Mix 2 cups of flour; then stir.", None),
        ("```python\nx = 1\n```", "code"),
        ("for (i = 0; i < n; i++) {", "code"),
        ("Write to me@example.org", "web address"),
        ("Solve $x^2 = 4$", "formula"),
        ("a | b | c", "table"),
        ("This is **bold**", "markup"),
        ("Dear [Your Name]", "placeholder"),
        ("- a\n- b\n- c\n- d", "long list"),
        ("12345 67890 !!", "few letters"),
        ("  ", "no text"),
    ],
)
def test_what_cannot_be_spoken(text: str, reason: str | None) -> None:
    assert unspeakable(text, max_words=50) == reason


def test_texts_become_one_line_that_is_no_option() -> None:
    assert one_line("--help me:\n- first\n- second one") == "help me: first. second one."


def wav_bytes(seconds: float) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.1 * np.ones(int(8000 * seconds)), 8000, format="WAV")
    return buffer.getvalue()


def test_a_command_speaks_without_a_shell(tmp_path: Path) -> None:
    script = tmp_path / "speak.py"
    script.write_text(
        "import sys, shutil, pathlib\n"
        "voice, out = sys.argv[1:]\n"
        "pathlib.Path(out + '.said').write_text(voice)\n"
        f"shutil.copy({str(tmp_path / 'voice.wav')!r}, out)\n"
        f"pathlib.Path({str(tmp_path / 'heard')!r}).write_text(sys.stdin.read())\n"
    )
    (tmp_path / "voice.wav").write_bytes(wav_bytes(0.5))
    options = SpeakerOptions(f"command:{sys.executable} {script} {{voice}} {{out}}", ("anna", "bert", "cleo"))
    speaker = open_speaker(options)
    text = "Hello; touch {out} $(true)"
    speech = speaker(text, 0, False)
    assert len(speech.wave) == 8000
    assert speech.voice in ("bert", "cleo")
    assert speaker(text, 0, True).voice == "anna"
    assert (tmp_path / "heard").read_text() == text
    with pytest.raises(ValueError, match="needs voices"):
        open_speaker(SpeakerOptions("command:true"))
    with pytest.raises(ValueError, match="ended with 1 for 'x'"):
        open_speaker(SpeakerOptions("command:false", ("a",)))("x", 0, False)
    with pytest.raises(ValueError, match="no sound file"):
        open_speaker(SpeakerOptions("command:echo hi", ("a",)))("x", 0, False)


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An endpoint that fails once and then speaks."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(503 if len(asked) == 1 else 200)
            self.end_headers()
            self.wfile.write(b"busy" if len(asked) == 1 else wav_bytes(0.25))

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/audio/speech", asked
    server.shutdown()


def test_an_endpoint_is_asked_again(endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipelines.synthetic.speakers._WAIT_S", 0.01)
    address, asked = endpoint
    speech = open_speaker(SpeakerOptions(address, ("alloy",), "some-tts"))("Good morning.", 0, False)
    assert len(speech.wave) == 4000
    assert asked[0] == asked[1]
    assert asked[1] == {"model": "some-tts", "input": "Good morning.", "voice": "alloy", "speed": speech.speed,
                        "response_format": "wav"}  # fmt: skip


def test_levels_and_rooms() -> None:
    rng = np.random.default_rng(0)
    speech = np.concatenate([rng.normal(0, 0.05, 16_000), np.zeros(16_000)]).astype(np.float32)
    noise = coloured_noise(8000, "n")
    np.testing.assert_array_equal(noise, coloured_noise(8000, "n"))
    for snr in (0.0, 20.0):
        under = at_snr(speech, noise, snr) - speech
        # Pauses do not make speech quieter than it is.
        assert 20 * np.log10(level(speech) / level(under)) == pytest.approx(snr, abs=0.5)
    np.testing.assert_array_equal(at_snr(speech, np.zeros(10, np.float32), 0.0), speech)
    click = np.zeros(16_000, np.float32)
    click[100] = 0.5
    heard = in_room(click, 0.4, 3.0, "r")
    assert len(heard) == len(click)
    assert abs(heard[:100]).max() < 1e-6
    energy = np.square(heard / heard[100])
    assert 10 * np.log10(energy[101:].sum()) == pytest.approx(-3.0, abs=0.2)
    assert energy[6400:].sum() < 1e-5
    assert energy[101:1700].sum() > 10 * energy[3300:].sum()


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """speech.tar: transcripts by three speakers; sounds.tar: labels; both of noise."""
    folder = tmp_path_factory.mktemp("annotated")
    rng = np.random.default_rng(1)
    texts = ["good morning to you", "the train is late", "two birds sing", "close the door please", "where is my hat"]
    with ShardWriter(folder / "speech.tar") as writer:
        for i, text in enumerate(texts * 2):
            wave = rng.normal(0, 0.1, 8000 + 800 * i).astype(np.float32)
            record = {"text": text, "language": "en", "speaker": f"s{i % 3}", "emotion": ["happy", "sad"][i % 2]}
            writer.write(f"speech-{i}", {**record, "split": "train", "license": "CC0-1.0"}, wave)
    with ShardWriter(folder / "sounds.tar") as writer:
        for i, label in enumerate(["dog bark", "dog howl", "rain", "siren", "door knock"] * 6):
            wave = rng.normal(0, 0.1, 12_000).astype(np.float32)
            writer.write(f"sound-{i}", {"label": label, "split": "train", "license": "CC-BY-4.0"}, wave)
        writer.write("nothing", {"split": "train"}, rng.normal(0, 0.1, 8000).astype(np.float32))
    return folder


def test_analysis_asks_only_what_the_annotation_answers(annotated: Path, tmp_path: Path, capsys: Any) -> None:
    words = [f"shards=[{annotated}/speech.tar,{annotated}/sounds.tar]", "workers=0", "yes_no=0.7"]
    assert run("data analysis", [*words, f"out={tmp_path / 'one'}"]) == 0
    assert "skipped 1: no task that the record can answer, e.g. nothing" in capsys.readouterr().out
    found = records(tmp_path / "one")
    assert len(found) == 40
    kinds = {kind for record in found.values() for kind in record["asked"]}
    assert {"present", "absent", "ask_transcript"} <= kinds
    lengths = {len(record["asked"]) for record in found.values()}
    assert {1, 2} <= lengths <= {1, 2, 3}
    bank = PromptBank.load()
    for key, record in found.items():
        messages = record["messages"]
        assert messages[0]["content"].startswith("<audio>")
        assert len(messages) == 2 * len(record["asked"])
        assert not any("<|" in message["content"] for message in messages)
        assert len({message["content"] for message in messages[1::2]}) == len(record["asked"])
        assert bank.sample(record, "chat", "chat", key, 0, 0).num_clips == 1
        assert record["made_from"]["key"] in key
        for asked, question, answer in zip(record["asked"], messages[::2], messages[1::2]):
            label = record["made_from"]["key"].startswith("sound") and question["content"]
            if asked == "absent":
                assert answer["content"].startswith("No")
                # A dog that howls is no proof against a dog that barks.
                index = int(record["made_from"]["key"].split("-")[1]) % 5
                assert not (index < 2 and "dog" in label)
    run("data analysis", [*words, f"out={tmp_path / 'two'}"])
    assert tars(tmp_path / "one") == tars(tmp_path / "two")
    run("data analysis", [f"shards={annotated}/*.tar", "tasks=[ask_transcript]", "yes_no=0", "turns=1", "workers=0",
                         "where.language=en", f"out={tmp_path / 'few'}"])  # fmt: skip
    assert {tuple(record["asked"]) for record in records(tmp_path / "few").values()} == {("ask_transcript",)}


def test_mixtures_say_what_they_are_made_of(annotated: Path, tmp_path: Path) -> None:
    words = [f"speech={annotated}/speech.tar", f"sounds={annotated}/sounds.tar", "over=12", "two=12", "command=12",
             "samples_per_shard=18", "workers=1"]  # fmt: skip
    run("data mixtures", [*words, f"out={tmp_path / 'one'}"])
    found = records(tmp_path / "one")
    assert len(found) == 36
    texts = {f"speech-{i}": t for i, t in enumerate(["good morning to you", "the train is late", "two birds sing",
             "close the door please", "where is my hat"] * 2)}  # fmt: skip
    for record in found.values():
        kind, parts = record["family"].split()[1], record["parts"]
        question, answer = (message["content"] for message in record["messages"])
        assert max(part["end_s"] for part in parts) == pytest.approx(record["seconds"], abs=0.01)
        if kind == "over":
            assert 0 <= parts[1]["snr_db"] <= 20
            asked_for_words = any(word in question for word in ("say", "words", "said"))
            assert (answer == texts[parts[0]["key"]]) == asked_for_words
        elif kind == "two":
            said = [texts[part["key"]] for part in parts]
            assert parts[0]["end_s"] + 0.29 < parts[1]["start_s"]
            assert said[0] != said[1]
            place = 0 if "first" in question else 1 if "second" in question else None
            assert answer == (said[place] if place is not None else
                              f"The first speaker says: {said[0]}\nThe second speaker says: {said[1]}")  # fmt: skip
        else:
            assert question == "<audio>"
            assert {"text", "voice"} <= set(parts[0])
            assert answer in ("dog bark", "dog howl", "rain", "siren", "door knock")
    assert {r["license"] for r in found.values()} == {"CC-BY-4.0 and CC0-1.0", "CC0-1.0", "CC-BY-4.0"}
    run("data mixtures", [*words[:-1], "workers=2", f"out={tmp_path / 'two'}"])
    assert tars(tmp_path / "one") == tars(tmp_path / "two")
    with pytest.raises(ValueError, match="at least two and one are needed"):
        run("data mixtures", [*words, "where.split=test", f"out={tmp_path / 'three'}"])


def test_clips_of_a_chat_are_what_was_made(annotated: Path, tmp_path: Path) -> None:
    run("data analysis", [f"shards={annotated}/speech.tar", "workers=0", f"out={tmp_path}"])
    (path,) = tmp_path.glob("*.tar")
    row = load_index(str(path)).table.to_pylist()[0]
    raw = path.read_bytes()[row["offsets"][0] : row["offsets"][0] + row["sizes"][0]]
    source = load_index(str(annotated / "speech.tar")).table.to_pylist()[0]
    first = (annotated / "speech.tar").read_bytes()[source["offsets"][0] : source["offsets"][0] + source["sizes"][0]]
    np.testing.assert_allclose(read_clip(raw), read_clip(first), atol=1e-4)


def test_labels_of_records_with_empty_fields() -> None:
    assert build_analysis.labels_of({"label": None, "labels": None, "events": None}) == []
    record = {"label": "dog", "labels": ["rain", "dog"], "events": [{"label": "wind"}]}
    assert build_analysis.labels_of(record) == ["dog", "rain", "wind"]
