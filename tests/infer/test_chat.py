"""The terminal chat: history, clips, commands, and errors that say what to do."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from fake_model import FakeModel, processor, tone

from qa_train.config import ChatConfig
from qa_train.infer import conversation as module
from qa_train.infer.conversation import Conversation, chat, read_recording, record
from qa_train.infer.generate import Decoding, Generator


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    path = tmp_path / "my recording.wav"
    soundfile.write(path, tone(1.0), 16_000)
    return path


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    parts = processor()
    model = FakeModel(parts.tokenizer)
    monkeypatch.setattr(module, "load_answering_model", lambda source, **options: (model, parts))
    return model


def test_one_question(loaded: FakeModel, wav: Path) -> None:
    out = io.StringIO()
    assert chat(ChatConfig("x", [str(wav)], "What is it?"), out=out) == 0
    assert out.getvalue() == "tone 25\n"


def test_conversation_remembers_clips_and_turns(loaded: FakeModel, wav: Path) -> None:
    out = io.StringIO()
    chat(ChatConfig("x"), lines=io.StringIO(f"/audio '{wav}'\nWhat is it?\nand now?\n/clear\nstill?\n/quit\n"), out=out)
    said = out.getvalue()
    # The second turn still hears the clip; after /clear there is none.
    assert said.count("tone 25\n") == 2
    assert said.endswith("> 0\n\n> \n")
    texts = [loaded.tokenizer.decode(call["input_ids"][0]) for call in loaded.calls]
    assert texts[1].startswith(texts[0] + "tone 25<|im_end|>\n<|im_start|>user\nand now?")
    assert "tone" not in texts[2]


def test_errors_do_not_end_the_conversation(loaded: FakeModel, tmp_path: Path) -> None:
    out = io.StringIO()
    chat(ChatConfig("x"), lines=io.StringIO(f"/audio {tmp_path}/none.wav\n/sing\nhello\n"), out=out)
    said = out.getvalue()
    assert "no recording at" in said
    assert "unknown command /sing" in said
    assert "> 0\n" in said


def test_typed_tags_stay_text_in_a_chat(loaded: FakeModel) -> None:
    chat(ChatConfig("x", text="<|im_end|>"), out=io.StringIO())
    ids = loaded.calls[0]["input_ids"][0].tolist()
    end = loaded.tokenizer.convert_tokens_to_ids("<|im_end|>")
    # The system turn and the user turn, and not the typed one.
    assert ids.count(end) == 2


def test_base_template_takes_the_tags_of_a_prompt() -> None:
    parts = processor()
    model = FakeModel(parts.tokenizer)
    talk = Conversation(Generator(model, parts), Decoding(), template="base")
    for _ in range(2):
        talk.ask([tone(1.0)], "Recognize the speech: <|en|>", lambda piece: None)
    # No history in the base format: both times the same prompt.
    assert model.calls[0]["input_ids"].tolist() == model.calls[1]["input_ids"].tolist()
    assert model.calls[0]["input_ids"][0, -1] == model.tokenizer.convert_tokens_to_ids("<|en|>")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no recording at"), (b"not audio at all", "use WAV, FLAC"), (0.01, "is too short")],
)
def test_unusable_recordings_are_explained(tmp_path: Path, content: bytes | float | None, message: str) -> None:
    path = tmp_path / "clip.wav"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        soundfile.write(path, np.zeros(int(content * 16_000), dtype=np.float32), 16_000)
    with pytest.raises(ValueError, match=message):
        read_recording(path)


def test_marks_in_a_question_are_clips_or_refused(loaded: FakeModel, wav: Path) -> None:
    talk = Conversation(Generator(loaded, processor()), Decoding(max_new_tokens=8))
    wave = read_recording(wav)

    def placed(text: str, *waves: np.ndarray) -> list[str]:
        talk.clear()
        talk.ask(waves, text, lambda _: None)
        return [getattr(part, "text", "clip") for part in talk.messages[0].content]

    assert placed("What?", wave) == ["clip", "What?"]
    for mark in ("<audio>", "<|AUDIO|>", "<|audio_bos|><|AUDIO|><|audio_eos|>"):
        assert placed(f"First {mark} then?", wave) == ["First ", "clip", " then?"]
        with pytest.raises(ValueError, match="make them agree"):
            placed(f"{mark}{mark}", wave)
    assert placed("The <audio> tag?") == ["The <audio> tag?"]
    for text in ("<|AUDIO|>", "<|audio_bos|>"):
        with pytest.raises(ValueError, match="clip"):
            placed(text)


def test_cut_off_and_empty_turns(loaded: FakeModel, wav: Path) -> None:
    out = io.StringIO()
    chat(ChatConfig("x", [str(wav)], max_new_tokens=2), out=out)
    assert "(cut off: raise max_new_tokens)" in out.getvalue()
    parts = processor()
    talk = Conversation(Generator(FakeModel(parts.tokenizer), parts), Decoding())
    with pytest.raises(ValueError, match="nothing to send"):
        talk.ask([], "", lambda piece: None)


def test_a_recording_from_the_microphone(loaded: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    class PortAudioError(Exception):
        pass

    asked = []

    def rec(frames: int, **options: object) -> np.ndarray:
        asked.append((frames, options["samplerate"], options["channels"]))
        if frames > 16_000:
            raise PortAudioError("no default input device")
        return tone(frames / 16_000)[:, None]

    device = SimpleNamespace(rec=rec, PortAudioError=PortAudioError)
    monkeypatch.setitem(sys.modules, "sounddevice", device)
    out = io.StringIO()
    chat(ChatConfig("x"), lines=io.StringIO("/record 1\nWhat is it?\n/record 2\n/record soon\n/record 0\n"), out=out)
    assert asked[0] == (16_000, 16_000, 1)
    assert "recording ... 1.0 s; now type" in out.getvalue()
    assert "> tone 25" in out.getvalue()
    for said in ("no microphone to record from (no default input device)", "not 'soon'", "0.1 to 600 seconds, not 0"):
        assert said in out.getvalue()


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(ValueError, match=r"pip install 'qa-train\[microphone\]'.*/audio"):
        record(1.0)
