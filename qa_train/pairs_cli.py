"""`qa-train pairs`: sample answers, rank them, write the pairs as shards, and say what they teach."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from qa_train.config import PairsConfig
from qa_train.data.prompts import PromptBank
from qa_train.data.shards import ShardWriter
from qa_train.eval.client import Endpoint
from qa_train.eval.judge import Judge
from qa_train.eval.records import EvalSet
from qa_train.infer.generate import Generator
from qa_train.model import load_model
from qa_train.pairs import ByJudge, ByLabel, ByWordErrors, Pair, Ranker, balanced, sampled_pairs

_EXAMPLES = 10


@dataclass
class Lesson:
    """What a set of pairs teaches besides its purpose: above all, whether longer is better."""

    pairs: int = 0
    chosen_words: float = 0.0
    rejected_words: float = 0.0
    chosen_longer: int = 0
    rejected_longer: int = 0
    # Share, in percent, of the pairs of unequal length whose longer answer is the chosen one: 50 teaches nothing of it.
    longer_wins_percent: float | None = None
    examples: list[dict[str, str]] = field(default_factory=list)

    def add(self, pair: Pair) -> None:
        """Count one pair; the first few are kept to be read."""
        chosen, rejected = len(pair.chosen.split()), len(pair.rejected.split())
        self.chosen_words += chosen
        self.rejected_words += rejected
        self.chosen_longer += chosen > rejected
        self.rejected_longer += rejected > chosen
        self.pairs += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(
                {"key": pair.key, "prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
            )

    def report(self) -> dict[str, Any]:
        """The numbers, with mean words in place of sums."""
        means = {
            name: round(getattr(self, name) / max(1, self.pairs), 2) for name in ("chosen_words", "rejected_words")
        }
        unequal = self.chosen_longer + self.rejected_longer
        wins = round(100 * self.chosen_longer / unequal, 1) if unequal else None
        return asdict(self) | means | {"longer_wins_percent": wins}


def pairs(options: PairsConfig) -> int:
    """Make ``out/pairs-NNN.tar`` and ``out/pairs.report.json``.

    Raises:
        ValueError: wrong options, an unreadable checkpoint, no record to ask about, or no pair far enough apart.
    """
    ranker = _ranker(options)
    shards = options.shards if isinstance(options.shards, list) else [options.shards]
    metric = {"wer": "wer", "label": "contains"}.get(options.by)
    clips = EvalSet("pairs", shards, options.task, "chat", options.where, metric, limit=options.limit)
    model, processor = load_model(options.checkpoint, device=options.device)
    generator = Generator(model, processor, batch_size=options.batch_size, token_budget=32768)
    out = Path(options.out)
    if left := sorted(out.glob("pairs-*.tar")):
        raise ValueError(f"pairs: {out} holds pairs already ({left[0].name}): delete them, or choose another out=")
    left_out: Counter[str] = Counter()
    found = list(
        sampled_pairs(
            generator, clips, PromptBank.load(), samples=options.samples, temperature=options.temperature,
            max_new_tokens=options.max_new_tokens, seed=options.seed, ranker=ranker,
            left_out=left_out,
        )
    )  # fmt: skip
    kept = balanced(found) if options.balance else found
    if not found:
        raise ValueError(
            "pairs: no two answers were far enough apart: raise temperature= or samples=, or lower margin= "
            f"(left out before: {dict(left_out) or 'nothing'})"
        )
    if not kept:
        raise ValueError("pairs: all longer answers were the better ones, or all shorter ones: use balance=false")
    lesson = Lesson()
    with ShardWriter(out / "pairs-%03d.tar") as writer:
        for pair in kept:
            pair = replace(pair, key=writer.free_key(pair.key))
            writer.write(pair.key, pair.record("train"), [pair.wave])
            lesson.add(pair)
    report = lesson.report() | {
        "by": options.by, "left_out": dict(left_out), "left_out_for_length": len(found) - len(kept),
    }  # fmt: skip
    if isinstance(ranker, ByJudge):
        report["judged"] = ranker.counts
    (out / "pairs.report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps({name: value for name, value in report.items() if name != "examples"}, indent=2))
    print(f"pairs and examples to read: {out}")
    return 0


def _ranker(options: PairsConfig) -> Ranker:
    if options.by == "wer":
        return ByWordErrors(options.margin)
    if options.by == "label":
        return ByLabel()
    if options.by != "judge":
        raise ValueError(f"pairs: by={options.by!r}: use wer, label or judge")
    if not options.judge_model:
        raise ValueError("pairs: by=judge needs judge_model=NAME, and judge_url=ADDRESS unless its cache is replayed")
    endpoint = None
    if options.judge_url is not None:
        endpoint = Endpoint(options.judge_url, options.judge_model, options.judge_key_env)
    cache = Path(options.out) / "judge.jsonl"
    return ByJudge(Judge(options.judge_model, cache, endpoint))
