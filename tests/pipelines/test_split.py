"""Grouping and holding out."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipelines.clips.picks import draw
from scripts.quickstart_data.clip import Clip
from scripts.starter.split import hold_out, hold_out_per_class, speech_groups


def clip(key: str, text: str, language: str = "en", group: str = "", **record: object) -> Clip:
    return Clip(key, np.zeros(160, np.float32), {"text": text, "language": language, **record}, group or key)


def test_groups_follow_keys_texts_and_translations() -> None:
    clips = [
        clip("en-1", "please try again", group="again"),
        clip("fr-1", "veuillez réessayer", "fr", group="again"),
        clip("en-2", "not valid please try again", group="invalid"),
        clip("en-3", "hello", group="hello"),
        clip("es-3", "hola", "es", group="greeting", translation={"en": "hello"}),
        clip("en-4", "try again", group="other"),
        clip("it-5", "tre", "it", group="three"),
    ]
    groups = {frozenset(member.key for member in group) for group in speech_groups(clips)}
    # Two words may repeat anywhere; equal texts, keys, translations and contained texts may not.
    assert groups == {
        frozenset({"en-1", "fr-1", "en-2"}),
        frozenset({"en-3", "es-3"}),
        frozenset({"en-4"}),
        frozenset({"it-5"}),
    }


def test_hold_out_takes_whole_groups() -> None:
    groups = [[clip(f"{i}-{j}", f"text {i}", group=str(i)) for j in range(i % 4 + 1)] for i in range(40)]
    train, test = hold_out(groups, seed="s", wanted=20, counts=lambda clip: True, max_group=3)
    assert len(test) >= 20
    assert {clip.group for clip in train}.isdisjoint(clip.group for clip in test)
    assert all(len(groups[int(clip.group)]) <= 3 for clip in test)
    assert len(train) + len(test) == sum(map(len, groups))
    with pytest.raises(ValueError, match="can be held out"):
        hold_out(groups, seed="s", wanted=1000, counts=lambda clip: True, max_group=3)


def test_adding_a_clip_moves_no_other() -> None:
    clips = [clip(f"c{i}", "", label=f"l{i % 3}", group=f"g{i // 2}-{i % 3}") for i in range(60)]
    test = {clip.key for clip in hold_out_per_class(clips, seed="s", share=0.3)[1]}
    more = [*clips, clip("new", "", label="l0", group="new")]
    test_with_more = {clip.key for clip in hold_out_per_class(more, seed="s", share=0.3)[1]}
    others = {clip.key for clip in clips if clip.record["label"] != "l0"}
    assert test & others == test_with_more & others
    assert 0.15 * len(clips) < len(test) <= 0.35 * len(clips)
    assert all(0 <= draw("x", i) < 1 for i in range(100))
