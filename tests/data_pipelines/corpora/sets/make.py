"""Makes the small sets in this folder with the libraries whose formats they are in (README.md tells how to run it).

Nothing else imports it: the sets are committed, so that tests need none of these libraries.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

from tests.by_path import module_at
from tests.data_pipelines.corpora.made_up import SECONDS, audio_cell, tone

HERE = Path(__file__).parent
TEXTS = ("one bird", "two birds", "three small birds", "no bird at all", "five")


def clip(folder: Path, name: str, seconds: float = SECONDS) -> Path:
    """A tone on disk, whose pitch tells its name."""
    path = folder / name
    path.write_bytes(tone(name, seconds))
    return path


def manifest(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Lines of JSON."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def nemo(work: Path, checkout: Path) -> None:
    """Tarred ASR manifests by NeMo's script: sharded, in one file, and with several parts of one recording."""
    # Names of members are made from paths.
    os.chdir(work)
    work = Path("clips")
    work.mkdir()
    script = module_at(checkout / "scripts/speech_recognition/convert_to_tarred_audio_dataset.py")
    rows = [
        {"audio_filepath": str(clip(work, f"n{i}.flac")), "duration": SECONDS, "text": text, "lang": "en"}
        for i, text in enumerate(TEXTS[:4])
    ]
    rows[1]["_skipme"] = True
    long = str(clip(work, "long.flac", 0.9))
    parts = [
        {"audio_filepath": long, "duration": 0.3, "offset": offset, "text": text}
        for offset, text in ((0.0, "first part"), (0.3, "second part"), (0.6, "third part"))
    ]
    parts.append({"audio_filepath": str(clip(work, "p.flac")), "duration": SECONDS, "offset": 0.0, "text": "whole"})
    for name, listed in (("nemo", rows), ("nemo_parts", parts)):
        builder = script.ASRTarredDatasetBuilder()
        builder.configure(script.ASRTarredDatasetConfig(num_shards=2 if name == "nemo" else 1, slice_with_offset=False))
        # More than one bucket: no bins are estimated, for which it would need all of NeMo.
        builder.create_new_dataset(str(manifest(work / "asr.json", listed)), str(HERE / name), 1, buckets_num=2)
        (HERE / name / "metadata.yaml").unlink()


def nemo_chats(work: Path, checkout: Path) -> None:
    """``multimodal_conversation`` by NeMo's own writer, whose other imports are of no use here."""
    for name, wanted in (
        ("nemo.collections.common.data.lhotse.nemo_adapters", "expand_sharded_filepaths"),
        ("nemo.collections.common.data.prompt_fn", "apply_prompt_format_fn registered_prompt_format_fn"),
        ("nemo.collections.common.parts.preprocessing.manifest", "get_full_path"),
        ("nemo.collections.common.tokenizers.aggregate_tokenizer", "TokenizerWrapper"),
    ):
        module = types.ModuleType(name)
        for each in wanted.split():
            setattr(module, each, lambda *arguments, **options: lambda function: function)
        sys.modules[name] = module
    sys.modules["nemo.collections.common.data.lhotse.nemo_adapters"].expand_sharded_filepaths = lambda path: [path]  # type: ignore[attr-defined]
    sys.modules["nemo.collections.common.parts.preprocessing.manifest"].get_full_path = lambda name, of: str(  # type: ignore[attr-defined]
        Path(of).parent / name
    )
    adapters = module_at(checkout / "nemo/collections/common/data/lhotse/text_adapters.py")
    said = [
        {"value": "Can you help summarize the following?", "from": "User", "type": "text"},
        {"value": "123.wav", "from": "User", "type": "audio", "duration": SECONDS},
        {"value": "I'm glad to assist you with your request. Here's a summary:", "from": "Assistant", "type": "text"},
    ]
    clip(work, "123.wav")
    listed = manifest(work / "convo.jsonl", [{"id": f"convo_{i}", "conversations": said} for i in range(3)])
    with adapters.NeMoMultimodalConversationTarWriter(str(HERE / "nemo_chats"), shard_size=2) as writer:
        for each in adapters.NeMoMultimodalConversationJsonlAdapter(str(listed), "[audio]"):
            writer.write(each)


def shar(work: Path) -> None:
    """Lhotse Shar: as FLAC, and with the files' own formats."""
    from lhotse import CutSet, Recording, SupervisionSegment

    cuts = []
    for i, text in enumerate(TEXTS[:3]):
        recording = Recording.from_file(clip(work, f"s{i}.wav"))
        cut = recording.to_cut().truncate(offset=0.1, duration=0.2, preserve_id=True) if i == 2 else recording.to_cut()
        heard = SupervisionSegment(f"s{i}", recording.id, 0.0, cut.duration, text=text, language="en", speaker="anne")
        cut.supervisions = [heard]
        cuts.append(cut)
    for name, kind in (("shar", "flac"), ("shar_original", "original")):
        (HERE / name).mkdir()
        CutSet.from_cuts(cuts).to_shar(HERE / name, fields={"recording": kind}, shard_size=2)


def mosaic(work: Path) -> None:
    """MosaicML's MDS shards: plain, and compressed."""
    from streaming import MDSWriter

    columns = {"audio": "bytes", "text": "str", "speaker": "int", "facts": "json", "score": "float32", "any": "pkl"}
    for name, compression in (("mosaic", None), ("mosaic_zstd", "zstd"), ("mosaic_gz", "gz")):
        out = HERE / name
        with MDSWriter(out=str(out / "train"), columns=columns, compression=compression, size_limit=12000) as writer:
            for i, text in enumerate(TEXTS):
                facts = {"emotion": "happy", "number": i}
                row = {"audio": tone(f"m{i}.flac"), "text": text, "speaker": i, "facts": facts}
                writer.write({**row, "score": 0.5, "any": {1, 2}})


def energon(work: Path) -> None:
    """Megatron-Energon: with a map of fields, and crude."""
    import webdataset

    out = HERE / "energon"
    (out / "parts").mkdir(parents=True)
    for shard in range(3):
        with webdataset.TarWriter(str(out / f"parts/data_{shard}.tar")) as tar:
            for number in range(2 * shard, 2 * shard + 2):
                facts = {"caption": {"en": f"bird number {number}"}, "text": f"text {number}"}
                raw = tone(f"e{number}.flac")
                tar.write({"__key__": f"{number:03d}", "flac": raw, "json": facts, "cls": number})
    fields = json.dumps({"audio": "flac", "caption": "json[caption][en]", "label": "cls"})
    for name, described in (
        ("dataset.yaml", ("--sample-type", "CaptioningSample", "--field-map", fields)),
        ("crude.yaml", ("--sample-type", "CrudeWebdataset")),
    ):
        command = ["prepare", str(out), "--non-interactive", "--force-overwrite", "--dataset-yaml-name", name]
        command += ["--split-parts", "train:parts/data_[01].tar", "--split-parts", "val:parts/data_2.tar", *described]
        subprocess.run([str(Path(sys.executable).with_name("energon")), *command], check=True)
    for left in [*out.rglob("*.idx"), *out.rglob("index.*")]:
        left.unlink()


def huggingface(work: Path) -> None:
    """Hugging Face: Parquet as `push_to_hub` writes it, and the Arrow files of `save_to_disk`."""
    import datasets

    rows = {"audio": [audio_cell(f"h{i}.flac") for i in range(4)], "sentence": list(TEXTS[:4])}
    made = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(decode=False))
    made.to_parquet(HERE / "huggingface/data/train-00000-of-00001.parquet")
    made.save_to_disk(HERE / "huggingface_saved")


def main() -> None:
    """Make all sets anew; the argument is a checkout of NeMo."""
    checkout = Path(sys.argv[1])
    for old in HERE.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
    with tempfile.TemporaryDirectory() as work:
        for make in (shar, mosaic, energon, huggingface):
            make(Path(work))
        nemo(Path(work), checkout)
        nemo_chats(Path(work), checkout)


if __name__ == "__main__":
    main()
