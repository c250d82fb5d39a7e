"""Made-up results in the real schema: what the page must show well."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np


def metric(name: str, unit: str, higher: bool, n: int, target: float | None, *values: float) -> dict[str, Any]:
    stages = dict(zip(("before", "pretrain", "sft", "dpo"), values, strict=False))
    return {
        "name": name,
        "unit": unit,
        "higher_is_better": higher,
        "n": n,
        "target": target,
        "values": stages,
        "ci": {stage: [max(0.0, v - 4.2), v + 4.2] for stage, v in stages.items()},
    }


def results() -> dict[str, Any]:
    """Results of an imaginary quickstart: met, missed, borderline, unmeasured and target-less rows."""
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000).astype(np.float32)
    long = np.tile(tone, 25)
    metrics = [
        metric("Speech recognition, real English", "WER %", False, 69, 45, 161.2, 38.4, 40.1, 39.7),
        metric("Language of real recordings", "accuracy %", True, 240, 80, 0.0, 84.6, 83.3, 83.8),
        metric("Sound classes", "accuracy %", True, 96, None, 0.0, 52.1, 55.2, 54.2),
        metric("Speech translation into English", "BLEU", True, 120, 12, 0.0, 9.1, 9.4),
        metric("Spoken questions", "answered right %", True, 80, 60, 0.0, 2.5, 61.3, 63.8),
        metric("Held-out preference pairs", "accuracy %", True, 150, 70, 50.0),
    ]
    metrics[0]["note"] = "one speaker, who is also in training; texts are held out"
    metrics[0]["target_stage"] = "pretrain"
    metrics[5] |= {"values": {"sft": 49.3, "dpo": 66.7}, "ci": {"dpo": [58.8, 73.7]}}
    samples = [
        {
            "task": "speech recognition",
            "prompt": "Detect the language and recognize the speech: <|en|>",
            "reference": "Please enter your conference number, followed by the pound key.",
            "answers": {"before": "", "pretrain": "please enter your conference number follow by the pound key"},
            "audio": tone,
            "right": False,
        },
        {
            "task": "sound class",
            "prompt": "What makes this sound?",
            "reference": "dog",
            "answers": {"sft": "dog", "dpo": "<script>alert(1)</script>"},
            "audio": long,
            "right": True,
        },
        {"task": "voice chat", "reference": "Paris", "answers": {"sft": "The capital of France is Paris."}},
    ]
    return {
        "title": "qa-train quickstart",
        "created": "3 November 2026, 14:02",
        "metrics": metrics,
        "seconds": {"installation": 214, "data": 96.4, "pretrain": 541, "sft": 188, "dpo": 75, "evaluation": 163.2},
        "samples": samples,
        "environment": {"processor": "2 cores", "python": "3.11.9", "torch": "2.13.0+cpu", "commit": "0123abc"},
        "commands": ["scripts/quickstart.sh", "qa-train chat checkpoint=runs/quickstart/dpo audio=my.wav"],
        "notes": ["All held-out English is one speaker."],
    }


def run_dirs(folder: Path) -> dict[str, Path]:
    """Three run folders with a metrics.jsonl each; the dpo one ends in a line cut by a kill."""
    draw = random.Random(0)
    dirs = {}
    for stage, steps, start in (("pretrain", 900, 6.2), ("sft", 240, 2.2), ("dpo", 60, 0.69)):
        dirs[stage] = folder / stage
        dirs[stage].mkdir(parents=True)
        rows = []
        for step in range(1, steps + 1):
            row = {"step": step, "loss": start * (0.12 + math.exp(-5 * step / steps)) + draw.gauss(0, start / 40)}
            if stage == "pretrain" and step % 100 == 0:
                row["eval_wer"] = 40 + 120 * math.exp(-4 * step / steps)
            if stage == "dpo":
                row["rewards/accuracies"] = min(1.0, 0.5 + step / 150 + draw.gauss(0, 0.05))
            rows.append(json.dumps(row))
        text = "\n".join(rows) + ("\n" if stage != "dpo" else '\n{"step": 61, "lo')
        (dirs[stage] / "metrics.jsonl").write_text(text)
    return dirs
