"""Token counts next to an index: planning with them gives what tokenizing every record gives, and they are judged."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from qa_train.cli import main
from qa_train.config import DataConfig, SourceConfig
from qa_train.data.audio.front_end import FRONT_END
from qa_train.data.batches import Batches, open_data
from qa_train.data.shards import token_counts
from qa_train.data.shards.process_cache import KEPT
from qa_train.data.shards.token_counts import CountReader, count_shard
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.source import Source
from qa_train.data.stores import node_files
from qa_train.data.text.prompts import PromptBank
from qa_train.utils import draws
from tests.data.conftest import noise, speech_record

PROMPTS = """
asks: {target: "{text}", prompts: {en: ["{question}", "Please: {question} {text}", "Say it."]}}
tags: {target: "{text}<|{language}|>", prompts: {en: ["<|{language}|> is", "in {language_name}?", "what <|en|>"]}}
two: {target: "{text}", clips: 2, prompts: {en: ["both", "the two of them"]}}
first: {target: ["{translation[en]}", "{text}"], prompts: {en: ["to {translation[en]}", "hm", "what is it"]}}
one: {target: "{text}", prompts: {en: ["always so"]}}
hot: {target: "{text}", hotwords: {file: words.txt, ways: 7}, prompts: {en: ["with {hotwords}", "{hotwords}?", "hear"]}}
"""
WORDS = "hola\nmundo\nNew York\nÜnï 你好\n<|en|>\na word that is long\n3\nsix\n"
SPELLED = "a <|endoftext|> and <|im_end|> <|en|>"


def record(i: int) -> dict[str, Any]:
    """Records of every kind: questions, pairs, chats, two clips, text only, spelled special tokens, nothing."""
    made = speech_record(i) | {"question": ["who is it?", SPELLED, "", "Ünï 你好 " * (i % 5)][i % 4]}
    made["text"] += SPELLED if i % 11 == 0 else ""
    if i % 5 == 0:
        made |= {"chosen": "yes " * (1 + i % 7), "rejected": "no " * (1 + i % 3)}
    if i % 3 != 1:
        made["messages"] = [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "<audio>what? " + SPELLED * (i % 2)},
            {"role": "assistant", "content": made["text"], **({"loss": False} if i % 12 == 0 else {})},
        ]
        made["messages"] += [{"role": "user", "content": "and?"}, {"role": "assistant", "content": "so"}] * (i % 4 == 2)
    if i % 17 == 3:
        del made["text"]
    return made


@pytest.fixture(autouse=True)
def own_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("node")
    monkeypatch.setattr(node_files, "_folder", lambda: folder)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 records in 3 shards; the last of each shard has two clips, and one in four keys is not ASCII."""
    folder = tmp_path_factory.mktemp("corpus")
    with ShardWriter(folder / "c-%d.tar", max_samples=20) as writer:
        for i in range(60):
            key = f"{'ключ' if i % 4 == 0 else 'k'}{i:03d}"
            sound = noise(0.2 + 0.03 * i, seed=i)
            if i % 20 == 19:
                made = {name: value for name, value in record(i).items() if name != "messages"}
                writer.write(key, made, [sound, noise(0.5, seed=i)])
            else:
                writer.write(key, record(i), sound)
    (folder / "tasks.yaml").write_text(PROMPTS)
    (folder / "words.txt").write_text(WORDS)
    return folder


@pytest.fixture
def corpus(written: Path, tmp_path: Path) -> str:
    """The shards of `written`, for this test to change."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return str(tmp_path / "c-*.tar")


def source(
    corpus: str, tokenizer: Any, *, pairs: bool = False, limits: dict[str, float] | None = None, **options: Any
) -> Source:
    options = {"task": "asks", "template": "base", **options}
    cfg = DataConfig(**(limits or {}))
    bank = PromptBank.load([Path(corpus).parent / "tasks.yaml"])
    line = SourceConfig(name="s", shards=[corpus], **options)
    return Source("s", line, cfg, bank, tokenizer, seed=3, pairs=pairs)


def count(of: Source) -> None:
    for path in of.shards:
        assert count_shard(path, of.use) == str(CountReader(of.table, of.use).path(of.shards.index(path)))
    KEPT.__init__(KEPT.most_bytes)  # type: ignore[misc]


USES: list[dict[str, Any]] = [
    {},
    {"template": "chat"},
    {"task": "tags"},
    {"task": "tags", "template": "chat", "where": {"language": "es"}},
    {"task": "two"},
    {"task": "two", "template": "chat"},
    {"task": "first", "where": {"language": ["es", "en"], "split": "train"}},
    {"task": "one", "limits": {"min_duration_s": 0.5, "max_duration_s": 1.2}},
    {"task": "first", "max_samples": 13},
    {"task": "hot"},
    {"task": "hot", "template": "chat", "pairs": True},
    {"task": "chat", "template": "chat"},
    {"task": "chat", "template": "chat", "last_turn_only": True},
    {"task": "chat", "template": "chat", "pairs": True},
    {"task": "asks", "pairs": True},
    {"task": "asks", "template": "chat", "pairs": True, "max_samples": 4},
    {"task": "asr"},
    {"task": "translate", "template": "chat"},
]


@pytest.mark.parametrize("use", USES, ids=lambda use: "-".join(map(str, use.values())) or "asks")
def test_lengths_with_counts_are_those_of_the_tokenized_texts(corpus: str, tokenizer: Any, use: dict[str, Any]) -> None:
    plain = source(corpus, tokenizer, **use)
    rows = np.random.default_rng(0).permutation(60)
    wanted = [plain.lengths(rows, epoch) for epoch in range(4)]
    reasons = [plain.eligible.of_shard(shard) for shard in range(3)]
    count(plain)
    counted = source(corpus, tokenizer, **use)
    for epoch, plainly in enumerate(wanted):
        found = counted.lengths(rows, epoch)
        for name, value in vars(found).items():
            assert value.tolist() == getattr(plainly, name).tolist(), name
    assert [counted.eligible.of_shard(shard).tolist() for shard in range(3)] == [each.tolist() for each in reasons]
    assert not counted._wanted
    assert counted.fingerprint == plain.fingerprint
    good = wanted[0].tokens[wanted[0].reason == ""]
    assert len(good) >= 3
    assert len({tuple(each.tokens.tolist()) for each in wanted}) > 1 or use.get("task") in ("one", "chat")


def opened(corpus: str, tokenizer: Any, **options: Any) -> Batches:
    """Three tasks, a filter and pairs of epochs."""
    line = {"shards": [corpus], "template": "base"}
    sources = {
        "asks": SourceConfig(name="asks", task="asks", weight=2, **line),
        "first": SourceConfig(name="first", task="first", where={"language": "es"}, weight=1, **line),
        "hot": SourceConfig(name="hot", task="hot", weight=1, **line),
    }
    files = [str(Path(corpus).parent / "tasks.yaml")]
    cfg = DataConfig(sources=sources, tokens_per_batch=400, shuffle_window=50, prompt_files=files, **options)
    made = open_data(cfg, tokenizer, 80, seed=5, batches_per_step=2)
    made.plan._share = ""  # every window is planned here
    return made


def test_batches_are_the_same_and_a_run_counts_while_it_trains(corpus: str, tokenizer: Any) -> None:
    plain = opened(corpus, tokenizer)
    windows = [plain.plan.window(number) for number in range(4)]
    assert all(each._wanted for each in plain.sources)
    # One shard for each batch that is built, by the process that planned; each is found by the other processes.
    for _ in range(9):
        plain.ahead(0)
    assert not any(each._wanted for each in plain.sources)
    again = opened(corpus, tokenizer)
    assert [again.plan.window(number).batches for number in range(4)] == [window.batches for window in windows]
    assert [again.plan.window(n).batch_costs.tolist() for n in range(4)] == [w.batch_costs.tolist() for w in windows]
    assert not any(each._wanted for each in again.sources)
    for k in range(4):
        assert {name: value.tolist() for name, value in again.build(k).items()} == {
            name: value.tolist() for name, value in plain.build(k).items()
        }


def test_another_process_at_work_is_not_waited_for(
    corpus: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = source(corpus, tokenizer)
    busy.lengths(np.arange(60), 0)
    monkeypatch.setattr(token_counts._FILES, "prepare", lambda *_: None)
    assert [busy.count_one() for _ in range(4)] == [True, True, True, False]
    busy.lengths(np.arange(60), 1)
    assert len(busy._wanted) == 3


def rewritten(change: Callable[[dict[str, list[Any]]], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        table = pyarrow.parquet.read_table(path)
        columns = table.to_pydict()
        change(columns)
        pyarrow.parquet.write_table(pyarrow.table(columns, schema=table.schema), path)

    return apply


def set_cell(name: str, value: Any, row: int = 2) -> Callable[[Path], None]:
    return rewritten(lambda columns: columns[name].__setitem__(row, value))


def cut(columns: dict[str, list[Any]]) -> None:
    for values in columns.values():
        values.pop()


def other_schema(path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).drop_columns(["kind"]), path)


FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (set_cell("reason", 9), "reason is from 0 to 9"),
    (set_cell("reason", -1), "reason is from -1"),
    (set_cell("text", [1, 2]), "text of its row 2 has not 1 numbers"),
    (set_cell("text", [-5]), "text is from -5"),
    (set_cell("text", [1 << 30]), "text is from 0 to 1073741824"),
    (set_cell("text", None), "text of its row 2 is null"),
    (set_cell("scored", 1 << 20), "scored is from 0 to 1048576"),
    (set_cell("kind", 99), "kind is from 0 to 99"),
    (set_cell("wordings", [-4], row=0), "a number of its wordings is below 0"),
    (set_cell("wordings", [1 << 30], row=0), "wordings is from"),
    (set_cell("silent", None), "silent of its row 2 is null"),
    (rewritten(cut), "it has 19 rows, the index 20"),
    (other_schema, "it has the columns"),
    (lambda path: path.write_bytes(path.read_bytes()[:200]), "is damaged"),
    (lambda path: path.write_bytes(b""), "is damaged"),
]


@pytest.mark.parametrize(("damage", "message"), FAULTS, ids=[message[:30] for _, message in FAULTS])
def test_faulty_counts_are_refused_by_name(
    corpus: str, tokenizer: Any, damage: Callable[[Path], object], message: str
) -> None:
    of = source(corpus, tokenizer)
    count(of)
    place = Path(CountReader(of.table, of.use).path(1))
    damage(place)
    with pytest.raises(ValueError, match=message) as caught:
        source(corpus, tokenizer).lengths(np.arange(60), 0)
    assert place.name in str(caught.value)
    assert "make it again with qa-train data tokens" in str(caught.value)
    # Which it does.
    assert count_shard(of.shards[1], of.use) == str(place)
    assert count_shard(of.shards[1], of.use) is None
    source(corpus, tokenizer).lengths(np.arange(60), 0)


def test_counts_of_other_data_are_not_used(corpus: str, tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    of = source(corpus, tokenizer)
    count(of)
    reader = CountReader(of.table, of.use)
    Path(reader.path(1)).replace(reader.path(0))
    with caplog.at_level(logging.WARNING):
        found = source(corpus, tokenizer)
        found.lengths(np.arange(60), 0)
    assert "is not used: its fingerprint is" in caplog.text
    assert list(found._wanted) == [0, 1]
    # Another tokenizer, task or filter looks for another file.
    for other in ({"task": "one"}, {"template": "chat"}, {"where": {"language": "es"}}):
        assert CountReader(of.table, source(corpus, tokenizer, **other).use).path(2) != reader.path(2)


def test_counts_that_lie_stop_the_batch(corpus: str, tokenizer: Any) -> None:
    made = opened(corpus, tokenizer)
    for of in made.sources:
        count(of)
    for place in Path(corpus).parent.glob("*.tokens-*.parquet"):
        rewritten(lambda columns: columns.update(text=[[n + 1 for n in each] for each in columns["text"]]))(place)
        table = pyarrow.parquet.read_table(place)
        original = next(
            CountReader(of.table, of.use)
            for of in made.sources
            if str(place) in map(CountReader(of.table, of.use).path, range(3))
        )
        shard = [original.path(n) for n in range(3)].index(str(place))
        footer = {"format": "1", "fingerprint": original._table.fingerprints[shard], "use": original._digest}
        pyarrow.parquet.write_table(table.replace_schema_metadata(footer), place)
    with pytest.raises(ValueError, match=r"batch 0 has \d+ tokens, \d+ were planned: token counts next to its shards"):
        opened(corpus, tokenizer).build(0)


def test_the_command_counts_every_source_once(corpus: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [
        f"+data.sources.{name}={{shards: [{corpus}], task: {task}}}" for name, task in (("a", "one"), ("b", "asr"))
    ]
    words = ["data", "tokens", "model=tiny", "data=empty", *words, f"data.prompt_files=[{tmp_path}/tasks.yaml]"]
    for made in (3, 0):
        with pytest.raises(SystemExit) as done:
            main(words)
        assert done.value.code == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[-2:] == [f"a: {made} of 3 shards counted", f"b: {made} of 3 shards counted"]
    assert len(list(tmp_path.glob("c-*.tar.tokens-*.parquet"))) == 6


def test_many_draws_are_single_draws() -> None:
    keys = ["", "a", 'quote"\\', "ключ", "你好\n", "x" * 300, *(f"k{i}" for i in range(50))]
    counts = np.arange(1, len(keys) + 1)
    for before, after in (([3, 1], ["asr"]), ([], ["t"]), ([json.dumps("a"), None], [])):
        found = draws.below_each(counts, before, keys, after)
        assert found.tolist() == [draws.below(n, [*before, key, *after]) for n, key in enumerate(keys, 1)]
    assert draws.below_each(counts[:0], [1], [], [2]).tolist() == []


def test_tokens_of_many_clips_are_those_of_their_segments() -> None:
    second = FRONT_END.sample_rate
    samples = [321, 400, 1599, 1600, 1601, 30 * second - 1, 30 * second, 30 * second + 1, 30 * second + 1599]
    samples += [30 * second + 1600, 60 * second, 60 * second + 5, 90 * second + 4321, *range(16_000, 17_000, 7)]
    wanted = [sum(FRONT_END.tokens_of(FRONT_END.frames(n)) for n in FRONT_END.segments(each)) for each in samples]
    assert FRONT_END.tokens(np.asarray(samples)).tolist() == wanted
    assert [FRONT_END.tokens(each) for each in samples] == wanted
