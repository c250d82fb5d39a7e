"""The chat page used in a real browser: record, upload, ask twice, compare checkpoints, and do it wrong."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
from browser import Browser
from fake_model import tone
from test_server import checkpoints, server  # noqa: F401  (fixtures)

pytest.importorskip("uvicorn")

from live_server import Scripted, running

from qa_train.config import ServeConfig
from qa_train.infer.service import Service

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]
TEXTS = "[...document.querySelectorAll('.answer .text')].map((e) => e.textContent.trim())"
NOTES = "[...document.querySelectorAll('.answer .note')].map((e) => e.textContent)"
CLIPS = "[...document.querySelectorAll('#clips .name')].map((e) => e.textContent)"
STATUS = "document.querySelector('#status').textContent"
IDLE = f"document.querySelector('#stop').hidden && {STATUS} === 'answered'"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    made = Browser(str(CHROMIUM), tmp_path / "profile")
    try:
        yield made
        assert made.told("Runtime.exceptionThrown") == []
    finally:
        made.close()


@pytest.fixture
def page(browser: Browser, server: str) -> Browser:  # noqa: F811
    """The page of two real, small models."""
    return opened(browser, server, models=2)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    monkeypatch.setattr("qa_train.infer.service.count_tokens", lambda *given: 10)
    return Scripted()


@pytest.fixture
def scripted(browser: Browser, model: Scripted, tmp_path: Path) -> Iterator[Browser]:
    """The page of one model that says what the test wants."""
    (tmp_path / "clips").mkdir()
    for name in ("bell.wav", "bird.wav", "rain.wav"):
        soundfile.write(tmp_path / "clips" / name, tone(0.5), 16_000)
    options = ServeConfig(checkpoint="x", examples=str(tmp_path / "clips"))
    with running(Service({"m": model}, {"m": "chat"}, options)) as port:  # type: ignore[dict-item]
        yield opened(browser, f"http://127.0.0.1:{port}", models=1)


def opened(browser: Browser, address: str, models: int) -> Browser:
    browser.call("Page.navigate", url=address)
    browser.wait(
        f"document.querySelectorAll('#models input').length === {models} && document.activeElement.id === 'text'"
    )
    return browser


def ask(page: Browser, words: str, until: str = IDLE) -> None:
    """Write into the text box and send with Enter."""
    page.run("document.querySelector('#text').focus()")
    page.write(words)
    page.press("Enter")
    page.wait(until)


def noise(path: Path, seconds: float = 1.0) -> Path:
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, int(seconds * 16_000)), 16_000)
    return path


def test_voice_chat_and_audio_analysis_with_two_checkpoints(page: Browser, tmp_path: Path) -> None:
    # Speak: the recording alone, to both checkpoints.
    page.tab_to("Record")
    page.press("Space")
    page.wait("/\\([1-9]\\d* s\\)/.test(document.querySelector('#record').textContent)")
    page.press("Space")
    page.wait(f"{CLIPS}.length === 1")
    assert page.run("document.querySelector('#kind').textContent") == "voice chat"
    page.press("Enter")
    page.wait(IDLE)
    assert len(page.run(TEXTS)) == 2
    assert page.run("document.querySelectorAll('.failed').length") == 0
    # Ask again about an uploaded file, in words in the same box, of one checkpoint only.
    page.run("document.querySelector('#models input[value=second]').click()")
    assert page.run("document.querySelector('.answer[data-model=second]').hidden") is True
    page.upload("#files", noise(tmp_path / "noise.flac"))
    page.wait(f"{CLIPS}[0] === 'noise.flac, 1.0 s' && !!document.querySelector('#clips svg')")
    ask(page, "What is it?")
    answers = "[...document.querySelectorAll('.turn:last-child .answer')].map((e) => e.dataset.model)"
    assert page.run(answers) == ["first"]
    assert all("tokens, " in note for note in page.run(NOTES))
    page.run("document.querySelector('#clear').click()")
    assert page.run("document.querySelectorAll('.turn, .clip').length") == 0


def test_a_recording_is_sent_when_it_stops_if_wanted(page: Browser) -> None:
    page.run("document.querySelector('#at_once').click(); document.querySelector('#record').click()")
    page.wait("/\\([1-9]\\d* s\\)/.test(document.querySelector('#record').textContent)")
    page.run("document.querySelector('#record').click()")
    page.wait(IDLE)
    assert len(page.run(TEXTS)) == 2


def test_a_conversation_by_keyboard_alone(scripted: Browser, model: Scripted, tmp_path: Path) -> None:
    model.text = "A bird."
    scripted.tab_to("Upload")
    scripted.press("Enter")
    scripted.choose(noise(tmp_path / "noise.wav"))
    scripted.wait(f"{CLIPS}.length === 1")
    # Arrows in the examples only move.
    scripted.tab_to("Examples")
    scripted.press("Enter", "Tab")
    while scripted.run("document.activeElement.textContent") != "bell.wav":
        scripted.press("Tab")
    scripted.press("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp")
    assert scripted.run("document.activeElement.textContent") == "bird.wav"
    assert len(scripted.run(CLIPS)) == 1
    scripted.press("Enter")
    scripted.wait(f"{CLIPS}.length === 2")
    scripted.tab_to("Remove noise.wav")
    scripted.press("Space")
    assert scripted.run(CLIPS) == ["bird.wav, 0.5 s"]
    scripted.tab_to("Written question")
    scripted.write("What is it?")
    scripted.press("Shift+Enter")
    scripted.write("Say it.")
    scripted.press("Enter")
    scripted.wait(IDLE)
    assert scripted.run(TEXTS) == ["A bird."]
    assert model.asked == [[("user", "<clip>What is it?\nSay it.")]]
    # Retry, copy and edit.
    model.text = "A bell."
    scripted.tab_to("Retry the answer of m")
    scripted.press("Enter")
    scripted.wait(f"{IDLE} && {TEXTS}[0] === 'A bell.' && document.activeElement.id === 'text'")
    assert model.asked[1] == model.asked[0]
    scripted.run("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    scripted.tab_to("Copy the answer of m")
    scripted.press("Space")
    scripted.wait("window.copied === 'A bell.'")
    ask(scripted, "And now?", f"{IDLE} && {TEXTS}.length === 2")
    assert model.asked[2] == [*model.asked[0], ("assistant", "A bell."), ("user", "And now?")]
    scripted.tab_to("Edit the question")
    scripted.press("Escape")
    scripted.run("document.querySelector('.turn').scrollIntoView()")
    scripted.run("document.querySelector('.turn button[aria-label=\"Edit the question\"]').focus()")
    scripted.press("Enter")
    scripted.write(" Once more.")
    scripted.press("Enter")
    scripted.wait(f"{IDLE} && {TEXTS}.length === 1")
    assert model.asked[3] == [("user", "<clip>What is it?\nSay it. Once more.")]


def test_stop_ends_the_answer_here_and_in_the_server(scripted: Browser, model: Scripted) -> None:
    model.text, model.pause_s = "word " * 4000, 0.03
    ask(scripted, "Talk", f"{TEXTS}[0]?.length > 20")
    assert scripted.run("document.querySelector('#send').hidden") is True
    scripted.press("Escape")
    scripted.wait(f"document.querySelector('#stop').hidden && {STATUS} === 'stopped'")
    scripted.wait("document.querySelector('.note').textContent.startsWith('stopped after ')")
    for _ in range(100):
        if model.left_at is not None:
            break
        scripted.run("new Promise((done) => setTimeout(done, 50))")
    assert model.left_at is not None
    assert 3 < model.left_at < 3000
    # What came is part of the conversation.
    model.text, model.pause_s = "Yes.", 0.0
    ask(scripted, "Again", f"{IDLE} && {TEXTS}.length === 2")
    assert [role for role, _ in model.asked[1]] == ["user", "assistant", "user"]
    assert model.asked[1][1][1].startswith("word word")


def test_an_answer_that_was_cut_off_says_so(scripted: Browser, model: Scripted) -> None:
    model.text = "one two three four five six seven"
    ask(scripted, "Count")
    assert scripted.run(NOTES)[0].startswith("7 tokens, ")
    scripted.run("document.querySelector('#adjust').click()")
    for name, value in {"max_tokens": 5, "temperature": 0.7, "top_p": 0.9, "seed": 3, "system": "Be brief."}.items():
        scripted.run(f"document.querySelector('#{name}').value = '{value}'")
    ask(scripted, "Count again", f"{IDLE} && {NOTES}.length === 2")
    assert scripted.run(NOTES)[1].startswith("cut off at 5 tokens, ")
    assert scripted.run("document.querySelectorAll('.cut').length") == 1
    drawn = model.decodings[1]
    assert (drawn.temperature, drawn.top_p, drawn.seed) == (0.7, 0.9, 3)
    assert model.asked[1][0] == ("system", "Be brief.")
    # A wrong number is shown, also in a closed panel.
    scripted.run("document.querySelector('#adjust').click(); document.querySelector('#temperature').value = 9")
    scripted.run("document.querySelector('#text').focus()")
    scripted.write("Too hot")
    scripted.press("Enter")
    scripted.wait("!document.querySelector('#settings').hidden && document.activeElement.id === 'temperature'")
    assert len(model.asked) == 2


def test_markdown_is_shown_and_nothing_in_it_runs_or_is_fetched(scripted: Browser, model: Scripted) -> None:
    model.text = (
        "**bold** `code`\n\n3. three\n\n| a | b |\n|---:|---|\n| 1 | 2 |\n\n"
        "<script>document.title = 'ran'</script>\n\n<img src=x onerror=\"document.title = 'ran'\">\n\n"
        "![pixel](https://tracker.example/a.png) <svg onload=\"document.title = 'ran'\"></svg>\n\n"
        "[run](javascript:document.title='ran') [far](https://example.org/) <style>body { display: none }</style>"
    )
    ask(scripted, "Say something clever")
    inside = "document.querySelector('.answer .text')"
    assert scripted.run(f"['strong', 'code', 'ol li', 'table td'].every((each) => {inside}.querySelector(each))")
    # As it was counted and aligned.
    assert scripted.run(f"[{inside}.querySelector('ol').start, {inside}.querySelector('td').align]") == [3, "right"]
    assert (
        scripted.run(f"{inside}.querySelectorAll('script, img, svg, style, iframe, [onerror], [onload]').length") == 0
    )
    assert scripted.run(f"[...{inside}.querySelectorAll('a')].map((a) => a.getAttribute('href'))") == [
        None, "https://example.org/",
    ]  # fmt: skip
    scripted.run(f"{inside}.querySelector('a').click()")
    # What was written stays to be read.
    assert "<script>document.title = 'ran'</script>" in scripted.run(f"{inside}.textContent")
    assert scripted.run("document.title") == "qa-train chat"
    hosts = {urlsplit(each["request"]["url"]).hostname for each in scripted.told("Network.requestWillBeSent")}
    assert hosts - {None} == {"127.0.0.1"}
    assert [e["entry"]["text"] for e in scripted.told("Log.entryAdded")] == []


def test_a_pretrained_model_gets_one_question_at_a_time(browser: Browser, model: Scripted) -> None:
    with running(Service({"m": model}, {"m": "base"}, ServeConfig(checkpoint="x"))) as port:  # type: ignore[dict-item]
        page = opened(browser, f"http://127.0.0.1:{port}", models=1)
        assert page.run("document.querySelector('#system').disabled") is True
        assert page.run("document.querySelector('#offer').hidden") is True
        ask(page, "one")
        ask(page, "two", f"{IDLE} && {TEXTS}.length === 2")
    assert model.asked == [[("user", "one")], [("user", "two")]]


def test_a_file_is_dropped_anywhere(scripted: Browser, model: Scripted) -> None:
    script = """(async () => {
      const sound = await (await fetch('/examples/bird.wav')).blob();
      const data = new DataTransfer();
      data.items.add(new File([sound], 'dropped.wav'));
      const event = (name) => document.querySelector('main').dispatchEvent(
        new DragEvent(name, { dataTransfer: data, bubbles: true, cancelable: true }));
      return [event('dragover'), document.body.className, event('drop'), document.body.className];
    })()"""
    assert scripted.run(script) == [False, "over", False, ""]
    scripted.wait(f"{CLIPS}[0] === 'dropped.wav, 0.5 s'")


def test_what_goes_wrong_is_said(page: Browser, tmp_path: Path) -> None:
    (tmp_path / "letter.docx").write_bytes(b"PK not a sound")
    page.upload("#files", tmp_path / "letter.docx")
    assert "cannot be read as audio" in page.wait(STATUS)
    (tmp_path / "empty.wav").write_bytes(b"")
    page.upload("#files", tmp_path / "empty.wav")
    page.wait(f"{STATUS}.includes('the file is empty')")
    page.press("Enter")
    page.wait(f"{STATUS}.includes('record or choose a clip')")
    # Longer than the server allows: its own words, and the conversation goes on from before.
    page.upload("#files", noise(tmp_path / "long.flac", 40))
    page.wait(f"{CLIPS}.length === 1")
    page.press("Enter")
    assert "longer than" in page.wait("document.querySelector('.failed .note')?.textContent")
    page.wait(f"{STATUS} === 'an answer failed'")
    ask(page, "Hello", f"{IDLE} && {TEXTS}.length === 4")
    assert page.run("document.querySelectorAll('.failed').length") == 2


def test_a_browser_that_cannot_record_leaves_the_microphone_off(scripted: Browser) -> None:
    for fault in ("constructor() { throw new Error('no codec'); }", "start() { throw new Error('no codec'); }"):
        scripted.run(f"""
          window.stream = null;
          navigator.mediaDevices.getUserMedia = async (wanted) =>
            window.stream = await MediaDevices.prototype.getUserMedia.call(navigator.mediaDevices, wanted);
          window.MediaRecorder = class {{ {fault} }};
          document.querySelector('#status').textContent = '';
          document.querySelector('#record').click();
        """)
        scripted.wait(f"{STATUS}.includes('no microphone (no codec)')")
        assert scripted.run("window.stream.getTracks().map((track) => track.readyState)") == ["ended"]


def test_a_refusal_that_is_not_json_is_shown(scripted: Browser) -> None:
    for number, (said, shown) in enumerate((("only this machine is answered\\n", "only this machine is answered"),
                                            ("", "the server answered 403"))):  # fmt: skip
        scripted.run(f"window.fetch = async () => new Response('{said}', {{ status: 403 }})")
        ask(scripted, "Hello", f"{NOTES}.length === {number + 1} && {STATUS} === 'an answer failed'")
        assert scripted.run(NOTES)[-1] == shown


def test_a_question_sent_before_the_last_answer_has_stopped_says_so(scripted: Browser) -> None:
    scripted.run("window.fetch = () => new Promise((resolve, reject) => { window.fail = reject; })")
    ask(scripted, "Talk", f"{STATUS} === 'answering'")
    ask(scripted, "Again", f"{STATUS} === 'still answering'")
    scripted.run("document.querySelector('#clear').click()")
    ask(scripted, "Anew", f"{STATUS} === 'still stopping'")
    assert scripted.run("document.querySelector('#text').value") == "Anew"
    assert scripted.run("document.querySelectorAll('.turn').length") == 0
    scripted.run("window.fail(new DOMException('', 'AbortError'))")
    scripted.wait(f"{STATUS} === 'stopped'")
