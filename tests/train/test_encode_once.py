"""Every clip is encoded once, whoever encodes it, and a complete cache is known without a look at any clip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import qa_train.train.encode_once as encode_once
from qa_train.config import DataConfig, SourceConfig
from qa_train.data.audio.encoder_cache import EncoderCache
from qa_train.data.batches import Batches, open_data
from qa_train.data.cached_clips import wanted_shards
from qa_train.data.shards.index import load_index
from qa_train.data.shards.row_reader import RowReader
from qa_train.model import encoder_states
from tests.train.conftest import run, stage_words, tiny_model, write_shards

ARGS: Any = SimpleNamespace(bf16=False, device=torch.device("cpu"), process_index=0, world_size=1)


@pytest.fixture(scope="module")
def built() -> tuple[Any, Any]:
    return tiny_model()


def opened(folder: Path, processor: Any, **options: Any) -> Batches:
    """The speech of `write_shards`, all of it and the French half again."""
    chosen = {"all": options, "french": {"where": {"language": "fr"}}}
    sources = {
        name: SourceConfig(name=name, shards=[f"{folder}/speech-*.tar"], **{"task": "asr"} | more)
        for name, more in chosen.items()
    }
    data = DataConfig(sources=sources, tokens_per_batch=300, shuffle_window=64)
    return open_data(data, processor.tokenizer, 80, seed=0, batches_per_step=2)


def cached(batches: Batches) -> list[bool]:
    """Whether each of the clips that the batches take is in their cache."""
    assert batches.cache is not None
    shards = wanted_shards(batches.sources, lambda digest: True).items()
    return [batches.cache.get(d, clip.id) is not None for d, shard in shards for clip in shard.clips(0, 1)]


def test_a_start_with_a_complete_cache_reads_no_row(
    built: tuple[Any, Any], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    model, processor = built
    first = opened(shards, processor)
    encode_once.use_encoder_cache(str(tmp_path), model, first, ARGS)
    assert cached(first) == [True] * 60
    assert capsys.readouterr().out.count("of audio once (the encoder is frozen)") == 1
    batch, plain = first.build(0), opened(shards, processor).build(0)
    expected = encoder_states(model, plain["input_features"], plain["feature_lengths"])
    assert batch["audio_states"].dtype == torch.float16
    torch.testing.assert_close(batch["audio_states"].float(), expected, rtol=2**-11, atol=2**-24)
    # Rounding at 11 bits is all that the cache changes.
    for name in ("input_ids", "attention_mask", "labels"):
        assert torch.equal(batch[name], plain[name])

    again, less = opened(shards, processor), opened(shards, processor, template="chat")
    for each in (again, less):
        with monkeypatch.context() as patch:
            patch.setattr(RowReader, "rows", lambda *_, **__: pytest.fail("a row was read"))
            encode_once.use_encoder_cache(str(tmp_path), model, each, ARGS)
    # Another choice of records is looked at; its clips are there.
    other = opened(shards, processor, max_samples=10)
    monkeypatch.setattr(encode_once, "encoder_states", lambda *_: pytest.fail("encoded again"))
    encode_once.use_encoder_cache(str(tmp_path), model, other, ARGS)
    assert all(cached(other))


def test_choices_differ_where_the_records_may(built: tuple[Any, Any], shards: Path) -> None:
    def choices(**options: Any) -> list[str]:
        source = opened(shards, built[1], **options).sources[0]
        return [source.eligible.choice(shard) for shard in range(len(source.shards))]

    plain = choices()
    assert choices(template="chat") == choices(weight=3.0) == choices(loss_weight=2.0) == plain
    for options in (
        {"where": {"language": "en"}},
        {"where": {"language": ["en", "fr"]}},
        {"max_samples": 30},
        {"task": "lid"},
    ):
        assert not set(choices(**options)) & set(plain), options


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_ranks_share_what_is_missing(
    ranks: int, built: tuple[Any, Any], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = built
    batches = opened(shards, processor)
    cache = EncoderCache(tmp_path, "key", 32)
    missing: list[tuple[float, str]] = []
    monkeypatch.setattr(encode_once, "gather_object", lambda found: missing.extend(found) or found)
    for rank in range(ranks):
        encode_once._my_units(cache, batches, rank, ranks)
    assert len(missing) == 3, "each shard was looked at by one rank"
    monkeypatch.setattr(encode_once, "gather_object", lambda found: missing)
    units = [encode_once._my_units(cache, batches, rank, ranks) for rank in range(ranks)]
    seconds = [sum(unit.seconds for unit in mine) for mine in units]
    assert max(seconds) < 1.01 * min(seconds)
    encoded = []
    for mine in units:
        encode_once._fill(cache, model, batches, mine)
        encoded.append(sum(unit.seconds for unit in mine))
    batches.use_encoder_cache(cache)
    assert cached(batches) == [True] * 60
    lines = [line for path in cache.folder.glob("*/*.jsonl") for line in path.read_text().splitlines()]
    assert len(lines) == 60, "no clip was encoded twice"
    for digest, shard in wanted_shards(batches.sources, lambda digest: True).items():
        assert shard.taken == cache.complete(digest)


@pytest.mark.parametrize(("damage", "asked_again"), [("decoder", False), ("storage", True)])
def test_what_cannot_be_decoded_is_noted_and_what_cannot_be_read_is_tried_again(
    damage: str, asked_again: bool, built: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = built
    made = write_shards(tmp_path / "shards")
    batches = opened(made, processor)
    if damage == "storage":
        with (made / "speech-001.tar").open("r+b") as tar:
            tar.seek(load_index(str(made / "speech-001.tar")).table["offsets"][7].as_py()[0] + 60)
            tar.write(bytes(200))
    else:
        real, failed = batches.reader._decode, []

        def decode(raw: bytes, num_samples: int) -> Any:
            failed.append(raw)
            return real(raw if len(failed) != 5 else b"junk", num_samples)

        batches.reader._decode = decode
    encode_once.use_encoder_cache(str(tmp_path / "cache"), model, batches, ARGS)
    assert sorted(cached(batches)) == [False] + [True] * 59
    for k in range(40):
        batches.build(k)
        if batches.skipped:
            break
    assert set(batches.skipped) == {"not in encoder cache"}
    looked_at: list[Any] = []
    monkeypatch.setattr(Batches, "read_mels", lambda self, clips: looked_at.extend(clips) or real_mels(self, clips))
    encode_once.use_encoder_cache(str(tmp_path / "cache"), model, opened(made, processor), ARGS)
    assert len(looked_at) == int(asked_again)


real_mels: Callable[..., Any] = Batches.read_mels


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_zero3_encodes_and_trains_as_a_process_without_it(processes: int, tmp_path: Path, shards: Path) -> None:
    from tests.train.test_stages import losses

    frozen = ["model.freeze=[encoder]", "trainer.max_steps=4"]
    small = "deepspeed.config.zero_optimization.stage3_param_persistence_threshold=0"
    for name, more in {"plain": [], "zero": ["deepspeed=zero3", small]}.items():
        words = [*stage_words(shards, "pretrain", tmp_path / name), *frozen, *more]
        done = run(
            "pretrain", *words, f"data.encoder_cache={tmp_path}/cache-{name}", processes=processes if more else 1
        )
        assert "of audio once" in done.stdout
    assert losses(tmp_path / "zero") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)
    names = [sorted(path.name for path in (tmp_path / f"cache-{name}").iterdir()) for name in ("plain", "zero")]
    assert names[0] == names[1], "sharded and whole weights have the same digest"
