"""Items that are in the training shards are found by their bytes and by their words."""

from __future__ import annotations

from pathlib import Path

from fake_model import tone

from qa_train.data.shards import ShardWriter
from qa_train.data.tar import members
from qa_train.eval.contamination import contamination


def test_clips_and_words_are_found(tmp_path: Path) -> None:
    shard = tmp_path / "train-00000.tar"
    with ShardWriter(shard) as writer:
        writer.write("a", {"text": "The quick, brown fox JUMPS!"}, tone(0.5))
        writer.write("b", {"text": "yes", "translation": {"zh": "今天天气很好"}}, tone(0.7))
    with shard.open("rb") as file:
        found_members = list(members(file, str(shard), shard.stat().st_size))
        clip = next(m for m in found_members if m.key == "b" and m.extension != "json")
        file.seek(clip.offset)
        (tmp_path / "b.flac").write_bytes(file.read(clip.size))
    rows = [
        {"id": "1", "audio": "", "gt": "the quick brown fox jumps", "language": "en"},
        {"id": "2", "audio": "b.flac", "gt": "something else that is long", "language": "en"},
        {"id": "3", "audio": "none.wav", "gt": ["今天，天气很好。"], "language": "zh"},
        {"id": "4", "audio": "", "gt": "yes", "language": "en"},
        {"id": "5", "audio": "", "gt": "the quick brown fox sleeps", "language": "en"},
    ]
    found = contamination(rows, [str(shard)], tmp_path)
    assert (found["n"], found["same_clip"], found["same_words"]) == (5, 1, 2)
    assert (found["checked_clips"], found["checked_texts"]) == (1, 4)
    assert {example["id"] for example in found["examples"]} == {"1", "2", "3"}
    assert found["examples"][0]["where"].endswith("train-00000.tar:b")
