"""The options of the commands that are not training stages."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException


@dataclass
class EvalConfig:
    """`qa-train eval`: answer a file of questions about audio, and score the answers."""

    checkpoint: str = MISSING
    data: str = MISSING
    out: str = MISSING
    batch_size: int = 32
    max_new_tokens: int = 256
    device: str = "cpu"
    # How many questions to ask again with silence in place of the clip, to see whether the model listens.
    probe: int = 32


@dataclass
class ChatConfig:
    """`qa-train chat`: talk to a checkpoint about audio files."""

    checkpoint: str = MISSING
    # One file, or a list: audio=[a.wav,b.wav].
    audio: Any = None
    text: str | None = None
    # "chat" for a model after SFT; "base" for a pretrained one, which takes audio + a prompt.
    template: str = "chat"
    max_new_tokens: int = 256
    temperature: float = 0.0
    device: str = "cpu"


@dataclass
class ExportConfig:
    """`qa-train export`: a Hugging Face folder that stock transformers loads."""

    checkpoint: str = MISSING
    out: str = MISSING


@dataclass
class OrderConfig:
    """`qa-train data order`: the order in which a run of this shape trains on the samples."""

    steps: int = 10
    world_size: int = 1
    num_workers: int = 0
    stage: str = "pretrain"


def parse_options(kind: type[Any], words: list[str], command: str) -> Any:
    """Read ``key=value`` words into one of the small command dataclasses above.

    Raises:
        ValueError: a word without "=", an unknown key, a wrong type, or a missing required key.
    """
    known = ", ".join(f"{f.name}=" for f in fields(kind))
    stray = [word for word in words if "=" not in word]
    if stray:
        raise ValueError(f"{command}: {stray[0]!r} is not of the form key=value; known keys: {known}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.from_dotlist(words))
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ValueError(f"{command}: missing {', '.join(m + '=' for m in missing)}; known keys: {known}")
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ValueError(f"{command}: {str(error).splitlines()[0]}; known keys: {known}") from error
