"""The guide from one's own recordings to a model: its blocks, as they stand, on small data of a reader's."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from tests.train.conftest import ROOT, environment

_BLOCK = re.compile(r"^ *```(bash|yaml)\n(.*?)^ *```$", flags=re.MULTILINE | re.DOTALL)
_WORDS = "seven green birds sing over the quiet river while we wait".split()


def section() -> list[tuple[str, str]]:
    """(language, text) of the page's blocks."""
    text = (ROOT / "docs/start/recordings.md").read_text()
    return [(kind, re.sub(r"^   ", "", block, flags=re.MULTILINE)) for kind, block in _BLOCK.findall(text)]


def recordings(folder: Path) -> None:
    """A table of 24 recordings, 8 sounds with a JSON each, 8 chats, and a recording to ask about."""
    rng = np.random.default_rng(0)
    (folder / "clips").mkdir()
    (folder / "sounds").mkdir()

    def write(name: str, seconds: float) -> str:
        soundfile.write(folder / name, rng.normal(0, 0.1, int(16_000 * seconds)), 16_000)
        return name

    rows = ["audio,text,language,split"]
    for i in range(24):
        name = write(f"clips/{i:02d}.wav", 1 + i % 5 * 0.3)
        text = " ".join(_WORDS[(i + j) % len(_WORDS)] for j in range(2 + i % 3))
        rows.append(f"{name},{text},en,{'test' if i % 6 == 0 else 'train'}")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    for i in range(8):
        write(f"sounds/{i}.wav", 1)
        (folder / f"sounds/{i}.json").write_text(json.dumps({"caption": f"rain on roof {i}", "label": "rain"}))
    turns = [
        {"role": "user", "content": "<audio>What is said?"},
        {"role": "assistant", "content": "Seven green birds."},
    ]
    chats = [{"messages": turns, "audios": [f"clips/{i:02d}.wav"]} for i in range(8)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in chats))
    write("recording.wav", 1)


@pytest.mark.slow
def test_own_data_from_recordings_to_a_model(tmp_path: Path) -> None:
    recordings(tmp_path)
    blocks = section()
    assert [kind for kind, _ in blocks] == ["bash", "bash", "yaml", "bash", "bash"]
    said = ""
    for kind, text in blocks:
        if kind == "yaml":
            where = re.search(r"# (configs/\S+\.yaml)", text)
            assert where is not None
            (tmp_path / where[1]).parent.mkdir(parents=True)
            (tmp_path / where[1]).write_text(text)
            continue
        done = subprocess.run(
            ["bash", "-c", f"set -euo pipefail\n{text}"],
            cwd=tmp_path, env=environment() | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        said += done.stdout
    assert "table, train: 20 records" in said
    assert "table, test: 4 records" in said
    assert "shards/sounds-00000.tar: 8 records" in said
    used = yaml.safe_load((tmp_path / "runs/mine/config.yaml").read_text())["data"]["sources"]
    assert set(used) == {"asr", "captions"}
    lines = [json.loads(line) for line in (tmp_path / "runs/mine/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval/mine" in line] == [0, 2]
    assert {name for line in lines for name in line if name.startswith("loss/")} == {"loss/asr", "loss/captions"}
    assert (tmp_path / "runs/mine-sft/finished.json").is_file()
    assert (tmp_path / "runs/dashboard.html").is_file()
