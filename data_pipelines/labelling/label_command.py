"""The command `qa-train data label`."""

from __future__ import annotations

from data_pipelines.labelling.label_options import LabelConfig


def main(options: LabelConfig) -> int:
    """Label recordings by a checkpoint or a model behind an endpoint: transcripts, captions, languages.

      qa-train data label shards='raw/*.tar' out=new checkpoint=runs/sft
      qa-train data label shards='raw/*.tar' out=new url=http://HOST:8000/v1 \\
        model=NAME fields.language=de dry_run=true

    The same command again makes only the shards that are missing or whose input has changed. Skipped records are
    counted in OUT/label.report.json, and listed next to each shard in SHARD.dropped.jsonl.
    """
    # Loads torch, which the help does not need.
    from data_pipelines.labelling.build_labels import label

    return label(options)
