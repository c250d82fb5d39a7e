"""Synthetic speech and notes: repeatable, resumable, with voices and notes kept for tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.clips.make_shards import make
from data_pipelines.synthetic.synth import (
    HELD_OUT_ACCENTS,
    HELD_OUT_VARIANTS,
    TRAIN_ACCENTS,
    TRAIN_VARIANTS,
    Espeak,
    Voice,
    draw_voice,
)
from qa_train.jobs.executor import Engine
from scripts.quickstart_data import build as quickstart
from scripts.quickstart_data import notes
from scripts.quickstart_data.clip import ClipJob, read_shard

TEXTS = [f"this is sentence {word}" for word in ["one", "two", "three", "four", "five", "six", "seven", "eight"]]


def test_voices_depend_on_seed_and_text_only_and_tests_have_their_own() -> None:
    assert draw_voice("hello", seed=1) == draw_voice("hello", seed=1)
    assert len({draw_voice("hello", seed=seed) for seed in range(20)}) > 15
    assert set(TRAIN_ACCENTS).isdisjoint(HELD_OUT_ACCENTS)
    assert set(TRAIN_VARIANTS).isdisjoint(HELD_OUT_VARIANTS)
    for text in TEXTS:
        accent, variant = draw_voice(text, seed=0, held_out=True).name.split("+")
        assert accent in HELD_OUT_ACCENTS
        assert variant in HELD_OUT_VARIANTS


def test_every_voice_exists_and_speaks() -> None:
    engine = Espeak()
    names = [f"{TRAIN_ACCENTS[0]}+{variant}" for variant in (*TRAIN_VARIANTS, *HELD_OUT_VARIANTS)]
    names += [f"{accent}+m1" for accent in (*TRAIN_ACCENTS, *HELD_OUT_ACCENTS)]
    for name in names:
        wave = engine.speak("what is two plus three", Voice(name, 160, 50, 50))
        assert 0.7 < len(wave) / 16_000 < 4
        assert abs(wave).max() > 0.05
    for missing in ("en-us+nobody", "xx-nowhere"):
        with pytest.raises(ValueError, match="no voice"):
            engine.speak("hello", Voice(missing, 160, 50, 50))


def jobs(folder: Path) -> list[ClipJob]:
    return [
        ClipJob(folder / f"asr-{i}.tar", quickstart.speak_sentences, (TEXTS[i::2], "train", 3, 100 * i), 4)
        for i in (0, 1)
    ]


def test_shards_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    first, second = jobs(tmp_path / "a"), jobs(tmp_path / "b")
    assert make(first, engine=Engine(2)) == 8
    assert make(second, engine=Engine(1)) == 8
    for one, other in zip(first, second, strict=True):
        assert one.path.read_bytes() == other.path.read_bytes()


def test_finished_shards_are_kept_and_half_ones_redone(tmp_path: Path) -> None:
    todo = jobs(tmp_path)
    seen: list[int] = []
    make(todo, engine=Engine(1))
    whole = todo[0].path.read_bytes()
    assert make(todo, engine=Engine(1), ready=lambda job: seen.append(job.num_clips)) == 0
    assert sum(seen) == 8
    # Killed while writing: the shard is there, the marker is not.
    todo[0].path.write_bytes(whole[:1000])
    Path(f"{todo[0].path}.recipe").unlink()
    assert make(todo, engine=Engine(1)) == 4
    assert todo[0].path.read_bytes() == whole
    # Another recipe under the same name.
    changed = dataclasses.replace(todo[0], arguments=(TEXTS[:2], "train", 3, 0), num_clips=2)
    assert make([changed], engine=Engine(1)) == 2
    assert [clip.record["text"] for clip in read_shard(changed.path)] == TEXTS[:2]


def test_notes_sound_at_their_pitch() -> None:
    chosen = [notes.Note("piano", 0, 69), notes.Note("flute", 73, 72), notes.Note("violin", 40, 64)]
    for note, clip in zip(chosen, notes.render(chosen, split="train", seed=0), strict=True):
        spectrum = np.abs(np.fft.rfft(clip.wave))
        frequency = 440 * 2 ** ((note.pitch - 69) / 12)
        bins = [round(factor * frequency * len(clip.wave) / 16_000) for factor in (1, 2, 3)]
        strongest = spectrum.argmax()
        assert min(abs(strongest - place) for place in bins) <= 0.03 * strongest, note
        assert clip.record["label"] == note.label
    assert [note.name for note in chosen] == ["A 4", "C 5", "E 4"]


def test_test_notes_are_new_pairs_of_program_and_pitch() -> None:
    train, test = notes.split()
    assert set(train).isdisjoint(test)
    assert {note.label for note in test} == set(notes.INSTRUMENTS)
    assert len(train) >= 1000
