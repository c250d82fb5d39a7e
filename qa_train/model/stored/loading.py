"""The only reader of stored models: every file of a model folder is read through here.

A folder may be a stranger's. Nothing in it is executed: weights are safetensors, the rest is JSON, text and tokenizer
files, and code in a folder is refused before any library sees it. Sizes are judged before memory
is taken for them, and a folder with a manifest is compared with its checksums, which find damage and not a forger.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
)
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from qa_train.model.layers.parts import key_mapping
from qa_train.model.stored.manifest import MANIFEST, changed, read_manifest
from qa_train.model.stored.patterns import ambiguous, expressions
from qa_train.model.stored.sharded import whole_weights

T = TypeVar("T")

# What is read of a folder, and fetched of a hub's repository.
_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "adapter_model.safetensors")
_SMALL = (
    "config.json", "generation_config.json", "model.safetensors.index.json", "adapter_config.json", "base.json",
    "processor_config.json", "preprocessor_config.json", "chat_template.jinja", "chat_template.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model", "vocab.json",
    "vocab.txt", "merges.txt",
)  # fmt: skip
# The largest tokenizer known has 35 MB.
_MOST_BYTES = 256 << 20
# Fields in which configurations name classes: settings of other files are not code.
_NAMES_CODE = ("auto_map", "custom_pipelines")

# Field of a configuration -> its smallest and largest value. Above any model that exists, below what hurts.
_LIMITS = {
    **dict.fromkeys(("num_hidden_layers", "encoder_layers", "decoder_layers"), (1, 1024)),
    **dict.fromkeys(("hidden_size", "d_model"), (1, 1 << 17)),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim"), (1, 1 << 20)),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "encoder_attention_heads"), (1, 4096)),
    **dict.fromkeys(("decoder_attention_heads", "num_mel_bins"), (1, 4096)),
    "head_dim": (1, 1 << 16),
    "vocab_size": (1, 1 << 22),
    "max_source_positions": (1, 1 << 20),
    "max_target_positions": (1, 1 << 20),
    "max_position_embeddings": (1, 1 << 27),
    "audio_token_id": (0, 1 << 22),
    # Of a feature extractor.
    "feature_size": (1, 4096),
    "n_fft": (2, 1 << 16),
    "hop_length": (1, 1 << 16),
    "chunk_length": (1, 3600),
    "sampling_rate": (1, 1 << 20),
}
_OPTIONAL = ("head_dim", "num_key_value_heads", "max_position_embeddings")
DTYPES = {str(kind).removeprefix("torch."): kind for kind in (torch.float32, torch.bfloat16, torch.float16)}
# Nothing of a folder may lead to code, nor to a place outside it.
_SAFE: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}


def open_folder(source: str | Path, *, key: str = "checkpoint", weights: bool = True, verify: bool = True) -> Path:
    """The folder of the model ``source``, a folder or a hub id, with what must be known before any of it is read.

    Args:
        source: a folder with its files, or owner/name.
        key: what the user calls it, for messages.
        weights: whether the weights are wanted, too.
        verify: compare the files that will be read with the manifest's checksums, if there is a manifest.

    Raises:
        ValueError: there is no such folder or repository, it contains code, a file of it is not JSON, or was changed
            since it was saved.
    """
    folder = Path(source) if Path(source).is_dir() else _fetch(str(source), key, weights)
    names = [path.name for pattern in _SMALL for path in folder.glob(pattern) if path.is_file()]
    # Once on every machine: when it fails, the other processes of a run end with this one.
    if verify and os.environ.get("LOCAL_RANK", "0") == "0" and (folder / MANIFEST).is_file():
        _verify(folder, [*names, *(p.name for pattern in _WEIGHTS for p in folder.glob(pattern) if weights)], weights)
    for name in names:
        if (folder / name).stat().st_size > _MOST_BYTES:
            raise ValueError(f"{folder / name} has more than {_MOST_BYTES >> 20} MiB: it belongs to no model")
        if name.endswith(".json"):
            content = read_json(folder / name)
            # A vocabulary has words of any kind.
            if not name.startswith(("vocab", "added_tokens")) and (found := _code(content)):
                raise ValueError(
                    f"{key} {source} contains code, which is never run here ({name} has {found}): give a "
                    "model that transformers knows by itself (for the first Qwen: Qwen1.5 or later, or the released "
                    "Qwen2-Audio as model.checkpoint)"
                )
            if name == "tokenizer.json":
                _check_expressions(content, folder / name)
    return folder


def _check_expressions(content: dict[str, Any], path: Path) -> None:
    """ValueError if a prompt could keep the tokenizer busy without end."""
    parts = [content.get(name) for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder")]
    for pattern in expressions(parts):
        if (part := ambiguous(pattern)) is not None:
            raise ValueError(
                f"{path} splits text by a regular expression that can take exponential time ({part[:60]!r}): use "
                "another tokenizer, or rewrite that part without a repeated group"
            )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ValueError in one line if the file holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable JSON ({short(error)}): use another copy of this folder") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object: use another copy of this folder")
    return content


def _code(content: Any, depth: int = 0) -> str | None:
    """The field that names code, or a kernel of a hub, somewhere in a configuration."""
    if depth > 64 or not isinstance(content, dict | list):
        return None
    if isinstance(content, dict):
        for name, value in content.items():
            foreign_kernel = name.endswith("attn_implementation") and isinstance(value, str) and "/" in value
            if (name in _NAMES_CODE and value) or foreign_kernel:
                return str(name)
    values = content.values() if isinstance(content, dict) else content
    return next((found for value in values if (found := _code(value, depth + 1))), None)


def _verify(folder: Path, names: list[str], weights: bool) -> None:
    """ValueError if a file differs from the manifest, or a listed one is missing."""
    try:
        listed = set(read_manifest(folder)["files"])
        wanted = (*_SMALL, *(_WEIGHTS if weights else ()))
        absent = {name for name in listed for pattern in wanted if Path(name).match(pattern) and "/" not in name}
        fault = f"{min(absent - set(names))} is missing" if absent - set(names) else changed(folder, names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        fault = f"its manifest cannot be read: {short(error)}"
    if fault is not None:
        raise ValueError(
            f"{folder}: {fault}. Use another checkpoint or another copy, or verify=false if it was changed on purpose"
        )


def _fetch(source: str, key: str, weights: bool) -> Path:
    """The local copy of a repository of the hub: the files that are read, and no others."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(source, allow_patterns=[*_SMALL, *(_WEIGHTS if weights else ())]))
    except (OSError, ValueError, HFValidationError, HfHubHTTPError) as error:
        raise ValueError(
            f"{key} {source} cannot be read as a folder, nor fetched as a hub id: {short(error)}"
        ) from error


def read_config(folder: Path, kinds: Iterable[str] | None = None, **options: Any) -> Any:
    """The configuration of a folder that `open_folder` gave, its sizes judged.

    ValueError if it describes no model, or none of the types ``kinds``.
    """
    if not options:
        # Before it makes anything: a list of as many words as there are layers, for instance.
        _check_tree(read_json(folder / "config.json"), f"{folder}/config.json")
    config = _read(folder, "config.json", lambda: AutoConfig.from_pretrained(folder, **_SAFE, **options))
    if kinds is not None and config.model_type not in kinds:
        raise ValueError(f"{folder} is of type {config.model_type}; expected {', '.join(kinds)}")
    if getattr(config, "quantization_config", None) is not None and not options:
        raise ValueError(f"{folder} holds quantized weights, which are not supported: give the model in half precision")
    check_sizes(config, f"{folder}/config.json")
    return config


def check_sizes(config: Any, where: str) -> None:
    """ValueError for sizes that no model has: they would end in an error without a name, or in all of the memory."""
    for part in (config, *(getattr(config, name, None) for name in ("audio_config", "text_config"))):
        if part is None:
            continue
        check_limits(vars(part), where)
        heads, groups = (getattr(part, f"num_{kind}_heads", None) for kind in ("attention", "key_value"))
        if heads and groups and heads % groups:
            raise ValueError(f"{where} has {heads} heads and {groups} of keys and values: one must divide the other")
        dtype = getattr(part, "dtype", None)
        if dtype is not None and str(dtype).removeprefix("torch.") not in DTYPES:
            raise ValueError(f"{where} has dtype {str(dtype)[:40]}; expected one of {', '.join(DTYPES)}")


def _check_tree(values: dict[str, Any], where: str) -> None:
    check_limits(values, where)
    for part in values.values():
        if isinstance(part, dict):
            _check_tree(part, where)


def check_limits(values: dict[str, Any], where: str) -> None:
    """ValueError if a field of a configuration is an impossible size or not a number."""
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{where} has {name} = {value}: expected a number")
        if name not in _LIMITS or (value is None and name in _OPTIONAL):
            continue
        low, high = _LIMITS[name]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{where} has {name} = {str(value)[:40]}: expected a whole number from {low} to {high}")


def on_meta(make: Callable[[], T], where: str) -> T:
    """A model of shapes without memory, whole under ZeRO-3, too; ValueError if the configuration makes none."""
    try:
        with whole_weights(), torch.device("meta"):
            return make()
    except Exception as error:
        raise ValueError(f"{where} describes no model that can be built ({short(error)})") from error


def read_tokenizer(folder: Path, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder that `open_folder` gave.

    ValueError if there is none, or it is of a class that transformers does not have.
    """
    config = folder / "tokenizer_config.json"
    kind = read_json(config).get("tokenizer_class") if config.is_file() else None
    if kind is not None and (not isinstance(kind, str) or tokenizer_class_from_name(kind) is None):
        raise ValueError(
            f"{config} names the class {str(kind)[:60]!r}, which transformers does not have; code of a folder is "
            "never run here: give a tokenizer of a known class"
        )
    return _read(folder, "the tokenizer", lambda: AutoTokenizer.from_pretrained(folder, **_SAFE, **options))


def read_processor(folder: Path) -> Qwen2AudioProcessor:
    """The processor of a folder that `open_folder` gave; ValueError if it is not one of Qwen2-Audio."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            continue
        stored = read_json(folder / name)
        extractor = stored.get("feature_extractor", stored)
        if not isinstance(extractor, dict):
            raise ValueError(f"{folder / name} has an invalid feature extractor: use another copy of this folder")
        check_limits(extractor, str(folder / name))
        kind = extractor.get("feature_extractor_type", "WhisperFeatureExtractor")
        if kind != "WhisperFeatureExtractor":
            raise ValueError(
                f"{folder / name} names the class {str(kind)[:60]!r}; expected WhisperFeatureExtractor: code of a "
                "folder is never run here"
            )
    read_tokenizer(folder)
    return _read(folder, "the processor", lambda: Qwen2AudioProcessor.from_pretrained(folder, **_SAFE))


def read_model(kind: Any, folder: Path, config: Any, dtype: torch.dtype | None) -> Any:
    """The weights of ``folder`` in a model of class ``kind``; their names and shapes are known to fit."""
    options = {**_SAFE, "config": config, "dtype": dtype or "auto", "use_safetensors": True}
    # The library has a list of its own. A name that it lacks would leave a weight random, with a message.
    options["key_mapping"] = key_mapping()
    model = _read(folder, "the weights", lambda: kind.from_pretrained(folder, **options))
    # By them the library would save under the names of these files; without them, under those of the first release.
    model.__dict__.pop("_weight_conversions", None)
    return model


def read_gguf(file: Path, config: Any) -> Any:
    """A causal LM out of a packaged GGUF file, not quantized any more."""
    from transformers.utils.quantization_config import GgufConfig

    # Without the option the result counts as quantized and cannot be saved.
    quantization = GgufConfig(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, config=config, dtype="auto", quantization_config=quantization, **_SAFE
    )


def read_stock_model(
    folder: Path | str, adapters: Path | None = None, dtype: torch.dtype | Literal["auto"] = "auto"
) -> nn.Module:
    """The model of an exported folder (or of a hub) as anybody reads it, by the stock class; with adapters by peft.

    dtype: "auto" is that of the stored weights.
    """
    model: Any = Qwen2AudioForConditionalGeneration.from_pretrained(folder, dtype=dtype, **_SAFE)
    if adapters is not None:
        from peft import PeftModel

        options: dict[str, Any] = {"use_safetensors": True}
        model = PeftModel.from_pretrained(model, adapters, **options)
    return model.eval()


def read_stock_processor(folder: Path) -> Any:
    """The processor of an exported folder, by the stock class."""
    return AutoProcessor.from_pretrained(folder, **_SAFE)


def _read(folder: Path, what: str, read: Callable[[], T]) -> T:
    """What ``read`` gives; a library's error, of whatever kind, in one line."""
    try:
        return read()
    except Exception as error:
        raise ValueError(f"{what} of {folder} cannot be read: {short(error)}") from error


def short(error: BaseException) -> str:
    """An error as one line, cut."""
    return " ".join(str(error).split())[:300] or type(error).__name__
