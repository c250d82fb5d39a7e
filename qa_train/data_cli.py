"""`qa-train data ...`: index foreign shards, convert JSONL, and show the order of training."""

from __future__ import annotations

from typing import Any

from qa_train.config import OrderConfig, config_dir, parse_options, register, to_stage_config


def index(words: list[str]) -> int:
    """`data index PATH...`: write the sidecar index of every tar given (paths or globs)."""
    from qa_train.data.index import build_index

    if not words:
        raise ValueError("data index: give the .tar files to index, e.g. qa-train data index data/*.tar")
    indexes = build_index(words, progress=lambda path, records: print(f"{path}: {records} records", flush=True))
    for index in indexes:
        for problem in index.problems:
            print(f"{index.path}: left out {problem.key} at byte {problem.offset}: {problem.reason}, {problem.detail}")
    return 0


def from_jsonl(words: list[str]) -> int:
    """`data from-jsonl FILE OUT`: turn messages + audios lines into indexed shards."""
    from qa_train.data.interchange import jsonl_to_shards

    if len(words) != 2:
        raise ValueError("data from-jsonl: give FILE.jsonl and an output pattern, e.g. out/train-%05d.tar")
    for written in jsonl_to_shards(words[0], words[1]):
        print(f"{written.path}: {len(written)} records")
    return 0


def order(words: list[str]) -> int:
    """`data order ...`: SHA-256 of the order in which a run of this shape trains on the samples.

    The batches are drawn as in training: each of ``world_size`` ranks through a DataLoader with
    ``num_workers`` processes. The digest depends on neither number; that is the point of it.
    """
    names = set(OrderConfig.__dataclass_fields__)
    own = [word for word in words if word.split("=", 1)[0] in names]
    from qa_train.data.batches import open_data
    from qa_train.model import load_model_tokenizer

    options: OrderConfig = parse_options(OrderConfig, own, "data order")
    cfg = _compose(options.stage, [word for word in words if word not in own])
    tokenizer = load_model_tokenizer(cfg.model)
    per_step = cfg.trainer.batches_per_step
    # No audio is read, so the number of mel bins does not matter.
    data = open_data(
        cfg.data, tokenizer, 80, seed=cfg.data.seed, batches_per_step=per_step, preference=cfg.stage == "dpo"
    )
    print(data.order_digest(options.steps, options.world_size, options.num_workers))
    return 0


def _compose(stage: str, overrides: list[str]) -> Any:
    from hydra import compose, initialize_config_dir

    register()
    if not any(word.startswith("run.dir=") for word in overrides):
        overrides = [*overrides, "run.dir=unused"]
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir().resolve())):
        return to_stage_config(compose(config_name=stage, overrides=overrides))
