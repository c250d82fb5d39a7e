"""Batches: exact tokens, real frames, the same order for every shape of run, and bad clips counted."""

from __future__ import annotations

import hashlib
import logging
import pickle
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from qa_train.config import DataConfig, SourceConfig
from qa_train.data.audio.encoder_cache import EncoderCache
from qa_train.data.audio.front_end import FRONT_END
from qa_train.data.audio.mel import log_mel
from qa_train.data.audio.waveform import audio_tokens
from qa_train.data.batches import Batches, PreferenceBatches, open_data
from qa_train.data.cached_clips import wanted_shards
from qa_train.data.clips import Clip
from qa_train.data.loader import Collator, delivered, order_digest, rank_numbers
from qa_train.data.open_sources import share_allowed
from qa_train.data.order.passes import Passes
from qa_train.data.shards.index import build_index, load_index
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.source import Source
from tests.data.conftest import mixture, noise, speech_record
from tests.data.test_index import flac, plain_tar

STEPS, PER_STEP = 6, 4


def open_mixture(shards: dict[str, str], tokenizer: Any, **options: Any) -> Batches:
    return open_data(mixture(shards, **options), tokenizer, 80, seed=3, batches_per_step=PER_STEP)


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_batch_holds_real_tokens_and_real_frames_only(batches: Batches, tokenizer: Any) -> None:
    audio_id = tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    for k in range(12):
        batch = batches.build(k)
        assert set(batch) == {"input_ids", "attention_mask", "labels", "input_features", "feature_lengths"}
        refs = batches.plan.batch(k)
        counts = [batches.sources[r.source].lengths(np.array([r.row]), r.epoch).tokens[0] for r in refs]
        # The plan's counts are exact, so the budget is too.
        assert batch["attention_mask"].sum(1).tolist() == counts
        assert sum(counts) <= 500
        assert (batch["input_ids"][batch["attention_mask"] == 0] == tokenizer.pad_token_id).all()
        assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
        supervised = batch["labels"] != -100
        assert torch.equal(batch["labels"][supervised], batch["input_ids"][supervised])
        assert supervised.any(1).all()
        lengths = batch["feature_lengths"].tolist()
        assert batch["input_features"].shape == (80, sum(n + 2 for n in lengths))
        assert (batch["input_ids"] == audio_id).sum(1).tolist() == [FRONT_END.tokens_of(n) for n in lengths]


def test_batch_equals_its_samples_one_by_one(batches: Batches) -> None:
    """Plain twin: read each record's clip through the public functions, and join by hand."""
    batch = batches.build(5)
    start = 0
    for i, ref in enumerate(batches.plan.batch(5)):
        source = batches.sources[ref.source]
        (clip,) = source.clips(ref.row)
        mel = log_mel(batches.reader.wave(clip), 80)
        width = mel.shape[1]
        assert torch.equal(batch["input_features"][:, start : start + width], mel)
        start += width
        assert audio_tokens(clip.num_samples) == source.clip_tokens(ref.row)[0]
        assert batch["feature_lengths"][i] == -(-clip.num_samples // 160)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_order_does_not_depend_on_the_shape_of_the_run(
    shards: dict[str, str], tokenizer: Any, world_size: int, num_workers: int
) -> None:
    """The loader of accelerate's sharded sampler: rank r of W reads the batches r, r + W, ..."""
    batches = open_mixture(shards, tokenizer)
    plain = hashlib.sha256()
    for k in range(STEPS * PER_STEP):
        for key in batches.keys(k):
            plain.update(key.encode() + b"\n")
    assert order_digest(batches, STEPS, world_size, num_workers) == plain.hexdigest()


def test_ranks_read_what_accelerate_gives_them() -> None:
    for world_size in (1, 2, 4):
        for rank in range(world_size):
            sampler = BatchSampler(SequentialSampler(range(24)), batch_size=1, drop_last=False)
            shard = BatchSamplerShard(sampler, num_processes=world_size, process_index=rank)
            assert [k for batch in shard for k in batch] == list(rank_numbers(0, 24, rank, world_size))


def test_resume_reads_exactly_the_rest_at_another_shape(shards: dict[str, str], tokenizer: Any) -> None:
    total = STEPS * PER_STEP
    whole = list(delivered(open_mixture(shards, tokenizer), 0, total, 1, 0))
    for stop in (4, 8, 20):
        first = open_mixture(shards, tokenizer)
        begun = list(delivered(first, 0, stop, 2, 1))
        rest = open_mixture(shards, tokenizer)
        rest.plan.seek(*first.plan.seek_hint(stop))
        assert begun + list(delivered(rest, stop, total - stop, 4, 0)) == whole
        assert rest.fingerprint == first.fingerprint


def test_a_world_size_that_does_not_divide_the_step_is_refused(batches: Batches) -> None:
    with pytest.raises(ValueError, match="do not divide over 3 ranks"):
        order_digest(batches, 2, world_size=3)


@pytest.mark.parametrize("workers", [0, 2])
def test_tensors_do_not_depend_on_workers(shards: dict[str, str], tokenizer: Any, workers: int) -> None:
    batches = open_mixture(shards, tokenizer)
    numbers = [{"batch": k} for k in range(4)]
    loader = DataLoader(numbers, batch_size=1, num_workers=workers, collate_fn=Collator(batches))  # type: ignore[arg-type]
    alone = open_mixture(shards, tokenizer)
    passes = Passes(alone.plan)
    for k, batch in enumerate(loader):
        assert batch.pop("row_sources").tolist() == [ref.source for ref in alone.plan.batch(k)]
        # The last batch of the step carries how far the sources are.
        assert batch.pop("passes").tolist() == (passes.after(k) if k == 3 else [0.0] * len(alone.sources))
        assert same(batch, alone.build(k))
    copy = pickle.loads(pickle.dumps(batches))
    assert same(copy.build(3), alone.build(3))


@pytest.mark.parametrize("workers", [0, 2])
def test_mels_may_travel_in_half_precision(shards: dict[str, str], tokenizer: Any, workers: int) -> None:
    batches = open_mixture(shards, tokenizer)
    numbers: Any = list(range(4))
    collator = Collator(batches, torch.bfloat16)
    for k, batch in enumerate(DataLoader(numbers, batch_size=1, num_workers=workers, collate_fn=collator)):
        assert batch["input_features"].is_shared() == (workers > 0)
        plain = batches.build(k)
        plain["input_features"] = plain["input_features"].bfloat16()
        assert same({name: batch[name] for name in plain}, plain)


def test_fingerprint_follows_the_data_and_the_mixture(shards: dict[str, str], tokenizer: Any, tmp_path: Path) -> None:
    base = open_mixture(shards, tokenizer).fingerprint
    for shard in Path(shards["speech"]).parent.glob("*"):
        shutil.copy(shard, tmp_path)
    moved = {name: str(tmp_path / Path(pattern).name) for name, pattern in shards.items()}
    assert open_mixture(moved, tokenizer).fingerprint == base
    assert open_mixture(shards, tokenizer, tokens_per_batch=501).fingerprint != base
    assert open_mixture(shards, tokenizer, min_duration_s=0.5).fingerprint != base
    (tmp_path / "speech-002.tar").unlink()
    assert open_mixture(moved, tokenizer).fingerprint != base


def test_an_unrelated_prompt_changes_no_source(shards: dict[str, str], tokenizer: Any, tmp_path: Path) -> None:
    """A resume is refused, and a source begins its next epoch, only where its own wordings changed."""

    def prints(text: str | None) -> dict[str, str]:
        path = tmp_path / "prompts.yaml"
        path.write_text(text or "")
        files = [str(path)] if text else []
        return {
            source.name: source.fingerprint for source in open_mixture(shards, tokenizer, prompt_files=files).sources
        }

    base = prints(None)
    task = "  requires: [text]\n  target: '{{text}}'\n  prompts: {{en: ['{}', 'Write it down.']}}\n"
    unused = "bird_song:\n" + task.format("Which bird?")
    assert prints(unused) == base
    own = prints(unused + "asr:\n" + task.format("Transcribe."))
    assert {name for name in base if own[name] != base[name]} == {"asr"}
    assert len(base) == 3
    # The family is a heading of tables.
    assert prints("asr:\n  family: other\n" + task.format("Transcribe.")) == own


def one_source(pattern: str, **options: Any) -> DataConfig:
    names = set(SourceConfig.__dataclass_fields__)
    source = {"task": "asr", **{k: v for k, v in options.items() if k in names}}
    rest = {k: v for k, v in options.items() if k not in names}
    sources = {"s": SourceConfig(name="s", shards=[pattern], **source)}
    return DataConfig(sources=sources, **{"tokens_per_batch": 500, "shuffle_window": 90, **rest})


def opened(cfg: DataConfig, tokenizer: Any, **options: Any) -> Batches:
    return open_data(cfg, tokenizer, 80, seed=0, batches_per_step=1, **options)


def test_filters_are_counted(shards: dict[str, str], tokenizer: Any) -> None:
    batches = opened(
        one_source(shards["speech"], where={"language": ["es", "fr"]}, max_samples=20, min_duration_s=0.5), tokenizer
    )
    (row,) = batches.table()
    assert row["samples"] == 20
    assert sum(row["left_out"].values()) == 70
    assert set(row["left_out"]) == {"filtered by where", "shorter than min_duration_s", "beyond max_samples"} - (
        set() if row["left_out"].get("beyond max_samples") else {"beyond max_samples"}
    )
    source = batches.sources[0]
    rows = list(source.rows())
    assert len(rows) == source.eligible.counts.samples == 20
    assert {source.record(row)["language"] for row in rows} == {"es"}
    # What is planned is what is counted.
    refs = [ref for k in range(len(batches.plan.window(0).batches)) for ref in batches.plan.batch(k)]
    assert {ref.row for ref in refs if ref.epoch == 0} == set(rows)
    assert "60 filtered by where" in batches.describe()


def test_a_source_without_a_usable_record_says_why(shards: dict[str, str], tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"none of 90 records in 3 shards .*'not usable for the task': 90"):
        opened(one_source(shards["speech"], task="sound_class"), tokenizer)
    with pytest.raises(ValueError, match="task 'asrr' is unknown"):
        opened(one_source(shards["speech"], task="asrr"), tokenizer)
    with pytest.raises(ValueError, match="set template: chat"):
        opened(one_source(shards["speech"], task="chat"), tokenizer)
    with pytest.raises(ValueError, match="no shard matches"):
        opened(one_source(shards["speech"] + "nothing*"), tokenizer)


def test_the_same_record_twice_is_used_once(shards: dict[str, str], tokenizer: Any, tmp_path: Path) -> None:
    for side in ("", ".index.parquet"):
        shutil.copy(shards["speech"].replace("*", "000") + side, tmp_path / ("copy.tar" + side))
    cfg = one_source(shards["speech"])
    cfg.sources["s"].shards.append(str(tmp_path / "copy.tar"))
    (row,) = opened(cfg, tokenizer).table()
    assert row["samples"] == 90
    assert row["left_out"] == {"duplicate record": 30}


def test_other_audio_under_the_same_key_and_text_is_another_record(tokenizer: Any, tmp_path: Path) -> None:
    for name, seeds in (("a", (0, 1, 2, 3)), ("b", (10, 11, 12, 3))):
        with ShardWriter(tmp_path / f"{name}.tar") as writer:
            for i, seed in enumerate(seeds):
                writer.write(f"{i:06d}", {"text": "dog"}, noise(0.5, seed=seed))
    batches = opened(one_source(str(tmp_path / "*.tar"), shuffle_window=7), tokenizer)
    (row,) = batches.table()
    assert (row["samples"], row["left_out"]) == (7, {"duplicate record": 1})
    # Another process of the node is told so, and reads no index for it.
    source = batches.sources[0]
    table = replace(source.table, load=pytest.fail)
    again = Source("s", source.cfg, batches.cfg, source.bank, tokenizer, seed=0, pairs=False, table=table)
    assert again.shard_ids == source.shard_ids
    # Row 7 says what row 3 says, and sounds like it.
    refs = [ref for batch in batches.plan.window(0).batches for ref in batch]
    assert sorted((ref.row, ref.epoch) for ref in refs) == [(i, 0) for i in range(7)]


def damaged(tmp_path: Path, flip: list[int]) -> str:
    """Twenty records, some with a flipped bit in the audio after indexing."""
    with ShardWriter(tmp_path / "d.tar") as writer:
        for i in range(20):
            writer.write(f"k{i}", speech_record(i), noise(0.5, seed=i))
    path = tmp_path / "d.tar"
    raw = bytearray(path.read_bytes())
    for row in flip:
        raw[load_index(str(path)).table["offsets"][row].as_py()[0] + 200] ^= 4
    path.write_bytes(raw)
    return str(path)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_clips_are_skipped_counted_and_named(
    workers: int, tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = one_source(damaged(tmp_path, [2, 5]), shuffle_window=20)
    batches = opened(cfg, tokenizer)
    window = batches.plan.window(0)
    numbers: Any = list(range(len(window.batches)))
    with caplog.at_level(logging.WARNING):
        loader = DataLoader(numbers, batch_size=1, num_workers=workers, collate_fn=Collator(batches))
        rows = sum(len(batch["feature_lengths"]) for batch in loader)
    assert rows == 18
    assert batches.skipped == Counter({"changed shard": 2})
    if not workers:
        assert "skipped k2 of" in caplog.text
        assert "d.tar (changed shard): k2.flac" in caplog.text


def test_weights_of_tasks_come_with_the_rows(shards: dict[str, str], tokenizer: Any) -> None:
    cfg = mixture(shards)
    names = list(cfg.sources)
    cfg.sources[names[1]].loss_weight = 2.5
    batches = open_data(cfg, tokenizer, 80, seed=3, batches_per_step=PER_STEP)
    found = [(ref.source, weight) for k in range(6) for ref, weight in zip(
        batches.plan.batch(k), batches.build(k)["row_weights"].tolist(), strict=True)]  # fmt: skip
    assert set(found) == {(i, 2.5 if i == 1 else 1.0) for i in range(len(names))}


def test_the_error_budget_stops_the_run(tokenizer: Any, tmp_path: Path) -> None:
    path = damaged(tmp_path, [2, 5])
    batches = opened(one_source(path, shuffle_window=20, error_budget=0.0), tokenizer)
    numbers = range(len(batches.plan.window(0).batches))
    with pytest.raises(ValueError, match=r"samples could not be used, more than data.error_budget=0 .*d\.tar"):
        [batches.build(k) for k in numbers]


def fifty(tmp_path: Path, *, silent: int = 0, flip: int = 0) -> str:
    """Fifty records; the audio of some is no audio when they are indexed, that of others is changed afterwards."""
    made = {f"k{i}": b"x" if i < silent else flac(noise(0.3, seed=i)) for i in range(50)}
    members = [pair for key, raw in made.items() for pair in ((f"{key}.flac", raw), (f"{key}.json", b'{"text": "hi"}'))]
    path = plain_tar(tmp_path / "f.tar", members)
    build_index([path])
    raw = bytearray(Path(path).read_bytes())
    for offsets in load_index(path).table["offsets"].to_pylist()[:flip]:
        raw[offsets[0] + 200] ^= 4
    Path(path).write_bytes(raw)
    return path


def test_a_small_set_may_lose_a_tenth_and_no_more(tokenizer: Any, tmp_path: Path) -> None:
    """By the default budget of 1 %: five of fifty, when indexed, and in each of many epochs."""
    assert opened(one_source(fifty(tmp_path, silent=5)), tokenizer).table()[0]["problems"] == {"bad audio": 5}
    with pytest.raises(ValueError, match=r"6 of 50 records were unusable .* allows \(10\.0% of them\)"):
        opened(one_source(fifty(tmp_path, silent=6)), tokenizer)
    with pytest.raises(ValueError, match="1 of 50 records were unusable"):
        opened(one_source(fifty(tmp_path, silent=1), error_budget=0.0), tokenizer)

    def read(flip: int) -> Counter[str]:
        batches = opened(one_source(fifty(tmp_path, flip=flip), shuffle_window=1000), tokenizer)
        for k in range(len(batches.plan.window(0).batches)):
            batches.build(k)
        return batches.skipped

    assert read(3) == {"changed shard": 60}  # twenty epochs
    with pytest.raises(ValueError, match=r"samples could not be used, more than data\.error_budget"):
        read(8)
    shares = [share_allowed(0.01, total) for total in (1, 50, 100, 200, 1000, 10**9)]
    assert shares == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.01, 0.01])


def test_a_deleted_shard_is_counted_and_stops_by_budget(tokenizer: Any, tmp_path: Path) -> None:
    path = damaged(tmp_path, [])
    batches = opened(one_source(path, shuffle_window=20, tokens_per_batch=150), tokenizer)
    Path(path).unlink()
    # Nothing is left of the batch: one padding token without a label, and no audio.
    batch = batches.build(0)
    assert batch["input_ids"].tolist() == [[tokenizer.pad_token_id]]
    assert batch["labels"].tolist() == [[-100]]
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    with pytest.raises(ValueError, match="unreadable"):
        [batches.build(k) for k in range(1, 50)]
    assert batches.skipped["unreadable"] == 11


def test_problems_of_the_index_count_against_the_budget(tokenizer: Any, tmp_path: Path) -> None:
    members = {"a.flac": flac(noise(0.5)), "a.json": b'{"text": "hi"}', "b.flac": b"x", "b.json": b"{}"}
    path = plain_tar(tmp_path / "p.tar", members)
    build_index([path])
    assert opened(one_source(path), tokenizer).table()[0]["problems"] == {"bad audio": 1}
    with pytest.raises(ValueError, match=r"1 of 2 records were unusable when indexed.*key 'b', byte .*not a readable"):
        opened(one_source(path, error_budget=0.0), tokenizer)


def test_samples_too_long_for_a_batch_are_counted_once(tokenizer: Any, tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "l.tar") as writer:
        for i in range(9):
            writer.write(f"k{i}", {"text": "hi"}, noise(0.5 if i else 5.0))
    batches = opened(one_source(str(tmp_path / "l.tar"), tokens_per_batch=100, shuffle_window=9), tokenizer)
    for k in range(len(batches.plan.window(0).batches)):
        batches.build(k)
    assert batches.skipped == Counter({"too long for a batch": 1})


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("long", [1, 15])
def test_samples_too_long_for_a_batch_are_judged_by_the_window(
    long: int, ranks: int, tokenizer: Any, tmp_path: Path
) -> None:
    """One in 300 passes an error budget of 1 %, 15 do not: from the first batch on, for every rank."""
    with ShardWriter(tmp_path / "l.tar") as writer:
        for i in range(300):
            turns = [("user", "Hi"), ("assistant", "no " * 200 if i < long else "no")]
            writer.write(f"k{i}", {"messages": [{"role": role, "content": text} for role, text in turns]}, [])
    cfg = one_source(str(tmp_path / "l.tar"), task="chat", template="chat", tokens_per_batch=300, shuffle_window=3600)
    copies = [opened(cfg, tokenizer) for _ in range(ranks)]
    for rank, batches in enumerate(copies):
        if long == 1:
            [batches.build(k) for k in range(rank, 6, ranks)]
            continue
        with pytest.raises(ValueError, match=r"180 of the 3600 samples .* data.tokens_per_batch=300 .*max_duration_s"):
            batches.build(rank)
    found = sum((batches.skipped for batches in copies), Counter())
    assert found == ({"too long for a batch": 12} if long == 1 else {})


def test_long_clips_are_segmented_and_text_only_chats_have_no_audio(tokenizer: Any, tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "l.tar") as writer:
        writer.write("long", {"text": "hi"}, noise(61.0))
    batch = opened(one_source(str(tmp_path / "l.tar"), tokens_per_batch=2000), tokenizer).build(0)
    assert batch["feature_lengths"].tolist() == [3000, 3000, 100]
    assert batch["input_features"].shape[1] == 3000 + 3000 + 102
    audio_id = tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    assert (batch["input_ids"] == audio_id).sum() == 750 + 750 + 25
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    with ShardWriter(tmp_path / "t.tar") as writer:
        writer.write("text", {"messages": chat}, [])
    text = opened(one_source(str(tmp_path / "t.tar"), task="chat", template="chat"), tokenizer).build(0)
    assert set(text) == {"input_ids", "attention_mask", "labels"}


def preference_shard(tmp_path: Path) -> str:
    with ShardWriter(tmp_path / "p.tar") as writer:
        for i in range(12):
            asked = [{"role": "user", "content": "<audio>What is it?"}]
            record = {"messages": asked, "chosen": "a bell", "rejected": "a dog" * (i + 1)}
            writer.write(f"p{i}", record, noise(0.4 + i / 10, seed=i))
        writer.write("plain", {"text": "no pair"}, noise(0.5))
    return str(tmp_path / "p.tar")


def test_pairs_share_one_encoding(tokenizer: Any, tmp_path: Path) -> None:
    cfg = one_source(preference_shard(tmp_path), task="chat", template="chat", tokens_per_batch=1500)
    batches = opened(cfg, tokenizer, preference=True)
    assert isinstance(batches, PreferenceBatches)
    assert batches.table()[0]["left_out"] == {"no preference pair": 1}
    batch = batches.build(0)
    keys = {"input_ids", "attention_mask", "completion_mask", "input_features", "feature_lengths", "audio_gather"}
    assert set(batch) == keys
    pairs = len(batches.plan.batch(0))
    assert batch["attention_mask"].sum() <= 1500
    assert len(batch["input_ids"]) == 2 * pairs
    assert len(batch["feature_lengths"]) == pairs
    tokens = [FRONT_END.tokens_of(n) for n in batch["feature_lengths"].tolist()]
    audio_id = tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    assert (batch["input_ids"] == audio_id).sum(1).tolist() == tokens * 2
    assert batch["audio_gather"].tolist() == list(range(sum(tokens))) * 2
    for i, ref in enumerate(batches.plan.batch(0)):
        record = batches.sources[0].record(ref.row)
        for row, answer in ((i, record["chosen"]), (pairs + i, record["rejected"])):
            ids = batch["input_ids"][row][batch["completion_mask"][row] == 1]
            assert tokenizer.decode(ids) == answer + "<|im_end|>"
    assert ((batch["completion_mask"] == 1) <= (batch["attention_mask"] == 1)).all()


def wanted_clips(batches: Batches, of: int = 1) -> list[tuple[str, Clip]]:
    shards = wanted_shards(batches.sources, lambda digest: True).items()
    return [(digest, clip) for digest, shard in shards for share in range(of) for clip in shard.clips(share, of)]


def fill(batches: Batches, folder: Path, width: int = 4) -> EncoderCache:
    cache = EncoderCache(folder, "enc", width)
    for digest, clip in wanted_clips(batches):
        mels = batches.read_mels([clip])
        assert mels.input_features.shape[1] == int((mels.feature_lengths + 2).sum())
        assert len(mels.skipped) == 1 - len(mels.clips)
        with cache.writer(digest) as writer:
            for good, count in zip(mels.clips, mels.clip_tokens, strict=True):
                values = noise(1, good.num_samples)[: count * width].reshape(count, width)
                writer.write(good.id, torch.from_numpy(values))
    return cache


def test_cached_states_replace_mels(shards: dict[str, str], tokenizer: Any, tmp_path: Path) -> None:
    plain, cached = (open_mixture(shards, tokenizer) for _ in range(2))
    assert len(wanted_clips(cached)) == 110
    for of in (2, 5):
        assert sorted(wanted_clips(cached, of), key=str) == sorted(wanted_clips(cached), key=str)
    cached.use_encoder_cache(fill(cached, tmp_path))
    cached = pickle.loads(pickle.dumps(cached))
    for k in (0, 7):
        with_mels, with_states = plain.build(k), cached.build(k)
        assert set(with_states) == {"input_ids", "attention_mask", "labels", "audio_states"}
        assert torch.equal(with_states["input_ids"], with_mels["input_ids"])
        start = 0
        for ref in plain.plan.batch(k):
            (clip,) = plain.sources[ref.source].clips(ref.row)
            states = torch.from_numpy(noise(1, clip.num_samples)[: clip.num_tokens * 4].reshape(-1, 4))
            found = with_states["audio_states"][start : start + clip.num_tokens]
            assert torch.equal(found, states.half())
            start += clip.num_tokens
        assert start == len(with_states["audio_states"])


def test_a_clip_missing_from_the_cache_is_counted(shards: dict[str, str], tokenizer: Any, tmp_path: Path) -> None:
    batches = open_mixture(shards, tokenizer)
    batches.use_encoder_cache(EncoderCache(tmp_path, "enc", 4))
    batches.build(0)
    assert batches.skipped["not in encoder cache"] == len(batches.plan.batch(0))


def test_bad_clips_stay_out_of_the_cache(tokenizer: Any, tmp_path: Path) -> None:
    batches = opened(one_source(damaged(tmp_path, [4]), shuffle_window=20), tokenizer)
    cache = fill(batches, tmp_path / "cache")
    held = [cache.get(digest, clip.id) is not None for digest, clip in wanted_clips(batches)]
    assert (sum(held), len(held)) == (19, 20)
