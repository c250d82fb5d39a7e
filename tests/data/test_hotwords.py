"""Lists of words in a prompt: what they hold, that they are drawn by sample and epoch, and the file they come from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from qa_train.command_line.command_table import run
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.text.hotwords import read_hotwords, spaced_words, spoken_words
from qa_train.data.text.prompts import PromptBank, Unqualified
from qa_train.data.text.sample import TextPart
from tests.data.conftest import noise

WORDS = [
    "Zürich",
    "Kubernetes",
    "New York",
    "O'Hara",
    "人工智能",
    "qa-train",
    "<|en|>",
    *(f"other{i}" for i in range(40)),
]
TASK = """
asr_hotwords:
  target: "{text}"
  hotwords: {file: words.txt, most: 5, none: 0.25, ways: 20}
  prompts:
    en: ["Transcribe; these may occur: {hotwords}", "Words to expect: {hotwords}. Transcribe:", "Transcribe:"]
"""
TEXT = "We flew from new york to zürich, and “KUBERNETES” ran."


def bank(folder: Path, text: str = TASK, words: list[str] = WORDS) -> PromptBank:
    (folder / "words.txt").write_text("\n".join(words) + "\n\n")
    (folder / "tasks.yaml").write_text(text)
    return PromptBank.load([folder / "tasks.yaml"])


def asked(made: PromptBank, text: str, key: str, epoch: int) -> str:
    sample = made.sample({"text": text}, "asr_hotwords", "chat", key, 7, epoch)
    assert sample.messages[1].content == (TextPart(text),)
    return "".join(part.text for part in sample.messages[0].content if isinstance(part, TextPart))


def listed(prompt: str) -> list[str]:
    return prompt.split("occur: ")[-1].split("expect: ")[-1].split(". Tr")[0].split(", ")


def test_lists_mix_words_of_the_transcript_with_others(tmp_path: Path) -> None:
    made = bank(tmp_path)
    prompts = [asked(made, TEXT, f"k{i}", epoch) for i in range(50) for epoch in range(8)]
    without = [prompt for prompt in prompts if prompt == "Transcribe:"]
    assert 0.15 < len(without) / len(prompts) < 0.35
    lists = [listed(prompt) for prompt in prompts if prompt not in without]
    assert {len(each) for each in lists} == {1, 2, 3, 4, 5}
    assert all(len(set(each)) == len(each) and set(each) <= set(WORDS) for each in lists)
    own = Counter(word for each in lists for word in each if word in ("Zürich", "Kubernetes", "New York"))
    others = Counter(word for each in lists for word in each if word not in own)
    assert len(own) == 3
    assert len(others) > 10
    # Neither the number of own words nor their place gives them away.
    assert len({sum(word in own for word in each) for each in lists}) >= 3
    assert {each.index(word) for each in lists for word in each if word in own} >= {0, 1, 2}
    assert {prompt.split(":")[0] for prompt in prompts} >= {"Transcribe; these may occur", "Words to expect"}


def test_the_list_depends_on_sample_and_epoch_alone(tmp_path: Path) -> None:
    first = [asked(bank(tmp_path), TEXT, f"k{i}", epoch) for i in range(10) for epoch in range(5)]
    again = bank(tmp_path)
    order = [(i, epoch) for epoch in reversed(range(5)) for i in reversed(range(10))]
    found = {(i, epoch): asked(again, TEXT, f"k{i}", epoch) for i, epoch in order}
    assert [found[i, epoch] for i in range(10) for epoch in range(5)] == first
    assert len(set(first)) > 10
    assert len({asked(again, TEXT, "k1", epoch) for epoch in range(30)}) > 5


def test_a_word_of_the_file_is_text_and_no_control_token(tmp_path: Path) -> None:
    made = bank(tmp_path, words=["<|en|>"])
    sample = next(
        sample
        for epoch in range(50)
        if len((sample := made.sample({"text": "hi"}, "asr_hotwords", "chat", "k", 0, epoch)).messages[0].content) > 2
    )
    part = next(p for p in sample.messages[0].content if isinstance(p, TextPart) and "<|en|>" in p.text)
    assert not part.trusted


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("New Yorkers love Zürichs Züge", []),
        ("NEW, YORK!", ["New York"]),
        ("Mrs O’Hara said so", ["O'Hara"]),
        ("我们研究人工智能。", ["人工智能"]),
        ("Zu\u0308rich — Zürich/Kubernetes", ["Zürich", "Kubernetes"]),
        ("qa train, QA-Train", ["qa-train"]),
        ("", []),
    ],
)
def test_words_are_found_whole_in_any_case_and_script(tmp_path: Path, text: str, own: list[str]) -> None:
    bank(tmp_path)
    assert read_hotwords({"file": "words.txt"}, tmp_path).spoken(text) == own


def test_a_file_of_spoken_words_alone_gives_lists_too(tmp_path: Path) -> None:
    lists = read_hotwords({"file": "words.txt", "none": 0, "most": 9}, bank_folder(tmp_path, ["a", "b"])).lists("a b")
    assert {word for each in lists for word in each.split(", ")} == {"a", "b"}
    assert all(lists)


def bank_folder(folder: Path, words: list[str]) -> Path:
    bank(folder, words=words)
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("most: 5", "most: 0"), "most is 0; expected a whole number from 1 to 100"),
        (("none: 0.25", "none: 1.0"), "none is 1.0; expected a share"),
        (("none: 0.25", "none: 0"), "are not used if it is 0"),
        ((', "Transcribe:"', ""), "others are needed if none is above 0"),
        (("words.txt", "nowhere.txt"), "cannot be read"),
        (("file: words.txt", "path: words.txt"), "must have 'file'"),
        (("words.txt", "empty.txt"), "holds no words"),
    ],
)
def test_faults_are_named_with_the_task(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    (tmp_path / "empty.txt").write_text(" \n--\n")
    with pytest.raises(ValueError, match=words) as caught:
        bank(tmp_path, TASK.replace(*change))
    assert "task asr_hotwords" in str(caught.value)


def test_a_record_without_a_transcript_does_not_qualify(tmp_path: Path) -> None:
    with pytest.raises(Unqualified, match="needs"):
        bank(tmp_path).sample({"label": "bell"}, "asr_hotwords", "chat", "k", 0, 0)


def test_other_tasks_keep_their_digest_and_words_change_this_one(tmp_path: Path) -> None:
    first, second = bank(tmp_path), bank(tmp_path, words=WORDS[1:])
    assert first.digest("asr") == second.digest("asr") == PromptBank.load().digest("asr")
    assert first.digest("asr_hotwords") != second.digest("asr_hotwords")
    assert "hotwords" not in repr(first.task("asr"))


def test_rare_words_of_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts: list[Any] = [
        "The Berlin wall.",
        "THE berlin station",
        "the Zürich-based office — Berlin",
        None,
        "我们 the abc",
    ]
    with ShardWriter(tmp_path / "s-%d.tar", max_samples=2) as writer:
        for i, text in enumerate(texts):
            writer.write(f"k{i}", {"label": "x"} if text is None else {"text": text}, noise(0.3))
    shards = sorted(map(str, tmp_path.glob("*.tar")))
    out = tmp_path / "words.txt"
    for workers in (0, 2):
        assert run("data words", [*shards, f"out={out}", "at_most=3", f"num_workers={workers}"]) == 0
        assert out.read_text().splitlines() == ["Berlin", "office", "station", "wall", "Zürich-based"]
        assert "5 of 7 words" in capsys.readouterr().out
        out.unlink()
    with pytest.raises(ValueError, match="change at_most="):
        run("data words", [*shards, f"out={out}", "shortest=40"])
    out.write_text("kept")
    with pytest.raises(ValueError, match="exists"):
        run("data words", [*shards, f"out={out}"])
    assert spaced_words("我们 Abc") == [("abc", "Abc")]
    assert spoken_words("नमस्ते, दुनिया!") == ["नमस्ते", "दुनिया"]
