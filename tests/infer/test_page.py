"""The chat page used in a real browser: record, upload, ask twice, compare checkpoints, and do it wrong."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from browser import Browser
from test_server import checkpoints, server  # noqa: F401  (fixtures)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]
ANSWERS = "[...document.querySelectorAll('.assistant')].map((e) => e.textContent)"


@pytest.fixture
def page(server: str, tmp_path: Path) -> Iterator[Browser]:  # noqa: F811
    browser = Browser(str(CHROMIUM), tmp_path / "profile")
    try:
        browser.call("Page.navigate", url=server)
        browser.wait("document.querySelectorAll('.column').length === 2")
        yield browser
    finally:
        browser.close()


def test_the_page_as_a_person_uses_it(page: Browser, tmp_path: Path) -> None:
    # Speak: the recording is sent when it stops, to both checkpoints.
    page.run("document.querySelector('#record').click()")
    page.wait("document.querySelector('#record').textContent === 'Stop'")
    page.run("new Promise((done) => setTimeout(done, 1200))")
    page.run("document.querySelector('#record').click()")
    page.wait(f"{ANSWERS}.length === 2 && !busy && {ANSWERS}.every((text) => text)")
    assert page.run("document.querySelectorAll('.error').length") == 0
    # Ask again about an uploaded file, in words, of one checkpoint only.
    soundfile.write(tmp_path / "noise.flac", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    page.run("document.querySelector('input[value=analysis]').click()")
    page.run("document.querySelector('#models input[value=second]').click()")
    assert page.run("document.querySelector('.column[data-model=second]').hidden") is True
    page.upload("#upload", tmp_path / "noise.flac")
    page.wait("clips.length === 1")
    page.run("$('text').value = 'What is it?'; $('send').click()")
    page.wait(f"{ANSWERS}.length === 3 && !busy")
    assert page.run("conversations.get('first').length") == 4
    assert page.run("conversations.get('second').length") == 2
    # An example clip.
    page.run("$('examples').value = 'bird.wav'; $('examples').dispatchEvent(new Event('change'))")
    page.wait("clips.length === 1 && clips[0].name === 'bird.wav'")
    page.run("$('clear').click()")
    assert page.run("clips.length + conversations.size") == 0


def test_what_goes_wrong_is_said(page: Browser, tmp_path: Path) -> None:
    (tmp_path / "letter.docx").write_bytes(b"PK not a sound")
    page.upload("#upload", tmp_path / "letter.docx")
    assert "cannot be read as audio" in page.wait("$('status').textContent")
    (tmp_path / "empty.wav").write_bytes(b"")
    page.upload("#upload", tmp_path / "empty.wav")
    page.wait("$('status').textContent.includes('the file is empty')")
    page.run("$('send').click()")
    page.wait("$('status').textContent.includes('record or choose a clip first')")
    # Longer than the server allows: its own words, and the conversation goes on from before.
    soundfile.write(tmp_path / "long.flac", np.zeros(16_000 * 120), 16_000)
    page.upload("#upload", tmp_path / "long.flac")
    page.wait("clips.length === 1")
    page.run("$('send').click()")
    assert "longer than" in page.wait("document.querySelector('.error')?.textContent")
    assert page.run("conversations.size") == 0
