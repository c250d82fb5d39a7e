"""What holds for every importer: killed, it goes on to the same bytes; bad and missing audio are counted; what it
makes states its licence and can be trained on."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.importers import ImportConfig, import_corpus
from data_pipelines.importing.blocklist import EVALUATION_ONLY
from data_pipelines.importing.catalogue import CORPORA, corpus_of, table
from data_pipelines.importing.import_report import Report
from qa_train.data.shards.index import load_index
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.text.prompts import CHAT, PromptBank
from scripts.quickstart_data.clip import read_shard
from tests.data_pipelines.corpora import foreign_cases
from tests.data_pipelines.corpora.made_up import Case, tone, write_tree
from tests.data_pipelines.corpora.test_round_trip import CASES

BANK = PromptBank.load(languages=["en", "zh"])


def run(case: Case, folder: Path, files: dict[str, Any] | None = None, **options: Any) -> Report:
    """Import a case, or other files in its layout, into ``folder/out``."""
    root = folder / "in"
    if not root.exists():
        write_tree(root, case.files if files is None else files)
    known: dict[str, Any] = {"path": str(root), **case.options}
    if "path" in case.options:
        known["path"] = [str(root / part) for part in case.options["path"]]
    known |= {"out": str(folder / "out"), "split": case.split, "purpose": case.purpose, "workers": 0}
    (report,) = import_corpus(corpus_of(case.corpus), ImportConfig(**(known | options)))
    return report


def made(folder: Path) -> dict[str, bytes]:
    """All that an import leaves, but the listing."""
    return {path.name: path.read_bytes() for path in (folder / "out").iterdir() if path.is_file()}


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """Key -> record of all shards."""
    rows = [row for shard in (folder / "out").glob("*.tar") for row in load_index(str(shard)).table.to_pylist()]
    return {row["key"]: json.loads(row["meta"]) for row in rows}


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing cleans up."""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_killed_import_goes_on_to_the_same_bytes(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = run(case, tmp_path, samples_per_shard=1)
    whole = made(tmp_path)
    (tmp_path / "out").rename(tmp_path / "whole")
    written: list[str] = []
    plain = ShardWriter.write

    def write(self: ShardWriter, key: str, *arguments: Any, **options: Any) -> None:
        written.append(key)
        plain(self, key, *arguments, **options)
        if len(written) == max(1, len(case.records) - 1):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "write", write)
        patch.setattr(ShardWriter, "__exit__", lambda *_: None)
        with pytest.raises(Killed):
            run(case, tmp_path, samples_per_shard=1)
    assert len(made(tmp_path)) < len(whole)
    first = list(written)
    monkeypatch.setattr(
        ShardWriter, "write", lambda self, key, *a, **o: (written.append(key), plain(self, key, *a, **o))[1]
    )
    assert run(case, tmp_path, samples_per_shard=1) == wanted
    assert made(tmp_path) == whole
    # Only the shard that was being written is written again, and a third time nothing is.
    assert Counter(written) == Counter([*case.keys.values(), first[-1]])
    run(case, tmp_path, samples_per_shard=1)
    assert len(written) == len(case.records) + 1


def _damaged(files: dict[str, Any], name: str) -> dict[str, Any]:
    """The same files with noise in place of the audio of one: a file, or a place in a table or tar."""
    if name in files:
        return files | {name: b"\x01" * 999}
    raw = tone(name)
    assert any(isinstance(content, bytes) and raw in content for content in files.values()), name
    noise = b"\x01" * len(raw)
    return {
        key: content.replace(raw, noise) if isinstance(content, bytes) else content for key, content in files.items()
    }


@pytest.mark.parametrize("case", foreign_cases.CASES, ids=str)
def test_in_place_is_the_same_as_kept(case: Case, tmp_path: Path) -> None:
    for audio in ("keep", "in_place"):
        folder = tmp_path / audio
        report = run(case, folder, audio=audio)
        assert report.dropped == case.dropped
    found, kept = (
        {
            clip.key: (clip.record, clip.wave.tobytes())
            for tar in (tmp_path / n / "out").glob("*.tar")
            for clip in read_shard(tar)
        }
        for n in ("in_place", "keep")
    )
    assert found == kept
    assert len(found) == len(case.records)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_audio_is_skipped_counted_and_named(case: Case, tmp_path: Path) -> None:
    name, (file, _) = next(iter(case.records.items()))
    hit = {key for key, (other, _) in case.records.items() if other == file}
    with pytest.raises(ValueError, match=r"cannot be used, allowed are 0, e\.g\. |cannot be used, .*allows 0"):
        run(case, tmp_path, _damaged(case.files, file), error_budget=0.0)
    if hit == set(case.records):
        with pytest.raises(ValueError, match=f"none of {len(hit)} recordings could be imported"):
            run(case, tmp_path, error_budget=1.0)
        return
    report = run(case, tmp_path, error_budget=1.0)
    assert report.dropped == {**case.dropped, "bad audio": case.dropped.get("bad audio", 0) + len(hit)}
    assert case.keys[name] in "".join(report.examples["bad audio"])
    assert set(records(tmp_path)) == {key for name, key in case.keys.items() if name not in hit}


@pytest.mark.parametrize(
    "case", [case for case in CASES if next(iter(case.records.values()))[0] in case.files], ids=str
)
def test_a_missing_file_is_counted(case: Case, tmp_path: Path) -> None:
    file, _ = next(iter(case.records.values()))
    lost = sum(other == file for other, _ in case.records.values())
    files = {name: content for name, content in case.files.items() if name != file}
    if lost == len(case.records):
        # The message of an import of nothing counts what was missing, or says which folder is.
        with pytest.raises(ValueError, match=r"missing audio|audio not obtained|no .* under"):
            run(case, tmp_path, files, error_budget=1.0)
        return
    report = run(case, tmp_path, files, error_budget=1.0, missing_budget=1.0)
    if case.split == "train" and case.corpus == "gtzan":  # there is no list of what should be there
        assert report.made == len(case.records) - lost
        return
    missing = sum(report.dropped.get(reason, 0) for reason in ("missing audio", "audio not obtained"))
    before = sum(case.dropped.get(reason, 0) for reason in ("missing audio", "audio not obtained"))
    # Captions share a clip: it is missed once where the list names it once.
    assert before < missing <= before + lost
    assert report.made == len(case.records) - lost


@pytest.mark.parametrize("case", CASES, ids=str)
def test_records_state_their_licence_and_can_be_trained_on(case: Case, tmp_path: Path) -> None:
    corpus = corpus_of(case.corpus)
    report = run(case, tmp_path)
    found = records(tmp_path)
    assert report.license
    assert f"licence: {corpus.license}" in report.text()
    tasks = set(corpus.tasks)
    for record in found.values():
        assert record["split"] == corpus.role(case.split)
        assert corpus.generic or record["license"]
        if corpus.generic:
            tasks = {CHAT} if "messages" in record else set(BANK.tasks) - {"speech_or_not"}
        pair = "chosen" in record
        fit = [task for task in BANK.tasks.keys() | {CHAT} if BANK.qualifies(record, task, pair=pair)]
        names = {task.replace("@code", code) for task in tasks for code in ("en", "de", "zh")}
        assert names & set(fit), f"{record} fits {fit}, not {tasks}"


def test_every_corpus_states_licence_splits_and_tasks_of_the_bank() -> None:
    shown = table()
    for corpus in CORPORA.values():
        assert corpus.license
        assert f"    licence  {corpus.license}" in shown
        assert corpus.splits
        assert set(corpus.splits.values()) <= {"train", "dev", "test"}
        assert bool(corpus.tasks) != corpus.generic
        for task in corpus.tasks:
            assert task == CHAT or task.replace("@code", "zh") in BANK.tasks, task


def test_the_guide_lists_every_corpus_as_it_is() -> None:
    lines = (Path(__file__).parents[3] / "docs" / "corpora.md").read_text(encoding="utf-8").splitlines()
    for corpus in CORPORA.values():
        (row,) = [line for line in lines if line.startswith(f"| {corpus.name} |")]
        *_, license, train, held_out, tasks = [cell.strip() for cell in row.strip("|").split("|")]
        assert license == corpus.license
        assert tasks == (", ".join(corpus.tasks) or "what its fields allow")
        if corpus.name not in EVALUATION_ONLY and not corpus.generic:
            assert train == ", ".join(corpus.train_splits)
            assert held_out == (", ".join(name for name in corpus.splits if name not in corpus.train_splits) or "-")


@pytest.mark.parametrize("name", [corpus.name for corpus in CORPORA.values() if not corpus.generic])
def test_every_declared_task_can_be_made_of_some_record_of_the_corpus(name: str) -> None:
    cases = [case for case in CASES if case.corpus == name]
    for task in corpus_of(name).tasks:
        made_of = [
            fields
            for case in cases
            for _, fields in case.records.values()
            if task == CHAT or BANK.qualifies(fields, task.replace("@code", "zh"))
        ]
        assert made_of, task


def test_files_that_no_list_names_are_counted(tmp_path: Path) -> None:
    case = next(case for case in CASES if str(case) == "librispeech-train-clean-100")
    extra = {"LibriSpeech/train-clean-100/14/208/14-208-0099.flac": 0.4}
    report = run(case, tmp_path, case.files | extra)
    assert report.made == len(case.records)
    assert "1 audio files in the same folders belong to no record of this split, e.g. 14-208-0099.flac" in report.text()


def test_a_union_of_splits_needs_the_lists_of_what_is_held_out(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.corpus == "common_voice")
    files = {name: content for name, content in case.files.items() if not name.endswith("test.tsv")}
    with pytest.raises(ValueError, match=r"test\.tsv to identify them is missing: copy the release's test\.tsv"):
        run(case, tmp_path, files)


def test_gtzan_follows_its_filtered_lists_or_none(tmp_path: Path) -> None:
    case = next(case for case in CASES if str(case) == "gtzan-valid")
    train = Case("gtzan", "train", case.files, {})
    assert run(train, tmp_path / "train").dropped == {"faulty": 1}
    assert set(records(tmp_path / "train")) == {"gtzan-train-blues_00000"}
    bare = {name: content for name, content in case.files.items() if name.endswith(".wav")}
    with pytest.raises(ValueError, match="has no official split"):
        run(case, tmp_path / "bare", bare)
