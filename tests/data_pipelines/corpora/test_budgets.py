"""What lists lose is counted against a budget, and an import beyond it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.importers import ImportConfig, import_corpus
from data_pipelines.importing.catalogue import corpus_of
from data_pipelines.importing.import_report import Report
from tests.data_pipelines.corpora.made_up import tone, write_tree

LINE = json.dumps({"audio_filepath": "a.wav", "text": "hello"})
_SLURP = {"slurp_id": 1, "sentence": "hi", "sentence_annotation": "hi", "action": "greet", "scenario": "general",
          "recordings": [{"file": "audio-1.flac"}], "tokens": [], "entities": []}  # fmt: skip
_CUT = {"id": "c", "type": "MonoCut", "start": 0, "duration": 0.4, "channel": 0, "supervisions": [],
        "recording": {"duration": 0.4, "sources": [{"type": "file", "channels": [0], "source": "a.wav"}]}}  # fmt: skip


def run(corpus: str, files: dict[str, Any], folder: Path, **options: Any) -> Report:
    """Import made-up files into ``folder/out``."""
    root = write_tree(folder / "in", files)
    known = {"path": str(root), "out": str(folder / "out"), "split": "train", "workers": 0}
    (report,) = import_corpus(corpus_of(corpus), ImportConfig(**(known | options)))
    return report


def lists_of(good: int, bad: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Reader -> (split, files) with that many good and bad entries."""
    names = [f"u{i}" for i in range(good + bad)]
    audioset = "".join(f'video{i:06d}, 0, 10, "/m/1"\n' for i in range(good)) + "video, 0\n" * bad
    return {
        "jsonl": ("train", {"rows.jsonl": "\n".join([LINE] * good + ["{}"] * bad), "a.wav": tone("a.wav")}),
        "slurp": ("train", {
            "train.jsonl": "\n".join(
                [json.dumps(_SLURP | {"recordings": [{"file": f"audio-{i}.flac"}]}) for i in range(good)] + ["{}"] * bad
            ),
            **{f"slurp_real/audio-{i}.flac": 0.2 for i in range(good)},
        }),
        "lhotse": ("train", {
            "cuts.jsonl": "\n".join([json.dumps(_CUT | {"id": f"c{i}"}) for i in range(good)] + ['{"id": "b"}'] * bad),
            "a.wav": tone("a.wav"),
        }),
        "kaldi": ("train", {
            "wav.scp": "".join(f"{name} a.wav\n" for name in names),
            "text": "".join(f"{name} hello\n" for name in names[:good]),
            "a.wav": tone("a.wav"),
        }),
        "audioset": ("balanced_train", {
            "balanced_train_segments.csv": audioset,
            "class_labels_indices.csv": "index,mid,display_name\n0,/m/1,Speech\n",
            **{f"video{i:06d}.wav": 0.2 for i in range(good)},
        }),
        "clotho": ("development", {
            "clotho_captions_development.csv":
                "file_name,caption_1\n" + "".join(f"{name}.wav,A sound\n" for name in names),
            **{f"development/{name}.wav": 0.2 for name in names[:good]},
        }),
        "aishell1": ("train", {
            "data_aishell/transcript/aishell_transcript_v0.8.txt":
                "".join(f"BAC009S0002W{i:04d} 好\n" for i in range(good)),
            **{f"data_aishell/wav/train/S0002/BAC009S0002W{i:04d}.wav": 0.2 for i in range(good + bad)},
        }),
    }  # fmt: skip


@pytest.mark.parametrize("corpus", list(lists_of(0, 0)))
def test_a_list_of_bad_entries_fails_and_a_single_one_is_counted(corpus: str, tmp_path: Path) -> None:
    split, files = lists_of(1, 9)[corpus]
    with pytest.raises(ValueError, match=r"9 of 10 entries of the lists cannot be used, error_budget=0\.01 allows 1"):
        run(corpus, files, tmp_path / "bad", split=split)
    assert not list((tmp_path / "bad").rglob("*.tar"))
    split, files = lists_of(3, 1)[corpus]
    report = run(corpus, files, tmp_path / "good", split=split)
    assert (report.made, report.bad, sum(report.dropped.values())) == (3, 1, 1)
    with pytest.raises(ValueError, match="error_budget=0 allows 0"):
        run(corpus, files, tmp_path / "strict", split=split, error_budget=0.0)


def test_lines_and_recordings_share_one_budget(tmp_path: Path) -> None:
    lines = [LINE, LINE, LINE.replace("a.wav", "gone.wav"), "{}"]
    files = {"rows.jsonl": "\n".join(lines), "a.wav": tone("a.wav")}
    with pytest.raises(ValueError, match=r"allowed are 0, e\.g\. .*gone\.wav"):
        run("jsonl", files, tmp_path / "strict")
    report = run("jsonl", files, tmp_path / "loose", error_budget=0.5)
    assert (report.made, report.bad, report.dropped) == (2, 2, {"bad line": 1, "missing audio": 1})


@pytest.mark.parametrize(("obtained", "passes"), [(9, True), (5, True), (4, False), (1, False)])
def test_clips_of_videos_have_a_budget_of_their_own(obtained: int, passes: bool, tmp_path: Path) -> None:
    files: dict[str, Any] = {
        "balanced_train_segments.csv": "".join(f'video{i:06d}, 0, 10, "/m/1"\n' for i in range(10)),
        "class_labels_indices.csv": "index,mid,display_name\n0,/m/1,Speech\n",
        **{f"video{i:06d}.wav": 0.2 for i in range(obtained)},
    }
    if passes:
        report = run("audioset", files, tmp_path, split="balanced_train", error_budget=0.0)
        assert (report.made, report.missing, report.bad) == (obtained, 10 - obtained, 0)
        return
    message = rf"{10 - obtained} of 10 clips are not among the audio files, missing_budget=0\.5 allows 5"
    with pytest.raises(ValueError, match=message):
        run("audioset", files, tmp_path, split="balanced_train")
    assert run("audioset", files, tmp_path, split="balanced_train", missing_budget=0.9).made == obtained


def test_what_a_corpus_leaves_out_by_itself_is_no_damage(tmp_path: Path) -> None:
    names = [f"blues.{i:05d}" for i in range(10)]
    files = {f"genres/blues/{name}.wav": 0.2 for name in names}
    listed = {"train_filtered.txt": f"blues/{names[0]}.wav\n", "valid_filtered.txt": f"blues/{names[1]}.wav\n"}
    report = run("gtzan", files | listed | {"test_filtered.txt": f"blues/{names[2]}.wav\n"}, tmp_path, error_budget=0.0)
    assert (report.made, report.bad, report.dropped) == (1, 0, {"faulty": 7})


@pytest.mark.parametrize("options", [{"error_budget": 1.5}, {"missing_budget": -0.1}])
def test_budgets_are_shares(options: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        run("jsonl", {"rows.jsonl": LINE, "a.wav": 0.2}, tmp_path, **options)
