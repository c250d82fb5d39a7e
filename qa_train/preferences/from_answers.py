"""`qa-train pairs`: sample answers, rank them, write the pairs as shards, and report their statistics."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from qa_train.config import EvalSetConfig, PairsConfig
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.text.prompts import PromptBank
from qa_train.eval.answers import Journal, Limits, Outcome, answer, load_answerer
from qa_train.eval.eval_sets import record_questions
from qa_train.eval.questions import Question, part_text
from qa_train.eval.ranks import Ranks, ranks_from_environment
from qa_train.eval.scores.task_metrics import is_metric, unknown_metric
from qa_train.infer.generate import Decoding
from qa_train.infer.prompt_format import warn_of_form
from qa_train.llm.client import Endpoint
from qa_train.llm.judge import Judge
from qa_train.preferences.draw import askable
from qa_train.preferences.rank import ByJudge, ByLabel, ByMetric, ByWordErrors, Pair, Ranker, balanced, ranked
from qa_train.utils.atomic import write_json
from qa_train.utils.digests import sha256_of
from qa_train.utils.progress import progress

_EXAMPLES = 10
# Written last: with it the pairs are complete.
REPORT = "pairs.report.json"


@dataclass
class Lesson:
    """Side effects of a set of pairs: above all, whether longer is better."""

    pairs: int = 0
    chosen_words: float = 0.0
    rejected_words: float = 0.0
    chosen_longer: int = 0
    rejected_longer: int = 0
    # Share, in percent, of the pairs of unequal length with the longer answer chosen: 50 is neutral.
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
    """Make ``out/pairs-NNN.tar`` and ``out/pairs.report.json``; several processes share the questions.

    The answers are kept in ``out/answers-RANK.jsonl``: the same command goes on after a kill, on any number of
    processes, and another ``by`` or ``margin`` ranks the same answers again.

    Raises:
        ValueError: wrong options, an unreadable checkpoint, no record to ask about, or no pair far enough apart.
    """
    ranker = _ranker(options)
    ranks = ranks_from_environment()
    out = Path(options.out)
    if left := _finished(out):
        raise ValueError(f"pairs: {out} holds pairs already ({left.name}): delete them, or choose another out=")
    shards = options.shards if isinstance(options.shards, list) else [options.shards]
    metric = {"label": "contains", "judge": None}.get(options.by, options.by)
    clips = EvalSetConfig(shards, options.task, "chat", options.where, metric, limit=options.limit)
    skipped: Counter[str] = Counter()
    questions = askable(
        record_questions("pairs", clips, PromptBank.load(options.prompt_files), options.storage), skipped
    )
    drawn = _drawn(options, questions, out, ranks)
    if ranks.rank > 0:
        return 0
    found = list(ranked(questions, drawn, options.samples, ranker, skipped))
    kept = balanced(found) if options.balance else found
    if not found:
        raise ValueError(
            "pairs: no two answers were far enough apart: raise temperature= or samples=, or lower margin= "
            f"(skipped before: {dict(skipped) or 'nothing'})"
        )
    if not kept:
        raise ValueError("pairs: all longer answers were the better ones, or all shorter ones: use balance=false")
    for path in out.glob("pairs-*.tar*"):
        # Of a try that ended before its report.
        path.unlink()
    lesson = Lesson()
    with ShardWriter(out / "pairs-%03d.tar") as writer:
        for pair in kept:
            pair = replace(pair, key=writer.free_key(pair.key))
            writer.write(pair.key, pair.record("train"), [pair.wave])
            lesson.add(pair)
    report = lesson.report() | {
        "by": options.by, "left_out": dict(skipped), "left_out_for_length": len(found) - len(kept),
    }  # fmt: skip
    if isinstance(ranker, ByJudge):
        report["judged"] = ranker.counts
    write_json(out / REPORT, report)
    print(json.dumps({name: value for name, value in report.items() if name != "examples"}, indent=2))
    print(f"pairs and examples to read: {out}")
    return 0


def _finished(out: Path) -> Path | None:
    """A shard that must not be replaced: all but those of a try that ended before its report."""
    left = sorted(out.glob("pairs-*.tar"))
    unfinished = not (out / REPORT).is_file() and any(out.glob("answers-*.jsonl"))
    return left[0] if left and not unfinished else None


def _drawn(options: PairsConfig, questions: Sequence[Question], out: Path, ranks: Ranks) -> list[Outcome]:
    """The answers of all ranks and earlier tries."""
    limits = Limits(options.batch_size, 32768)
    warn_of_form(options.checkpoint, "chat", "train it with qa-train sft first")
    generator, weights = load_answerer(
        options.checkpoint, options.device, verify=options.verify, allow_missing=options.allow_missing
    )
    decoding = Decoding(max_new_tokens=options.max_new_tokens, temperature=options.temperature, seed=options.seed)
    asked = [[q.sample.key, part_text(q.sample.messages[-1]), q.references] for q in questions]
    identity = weights | {
        "questions": sha256_of(asked),
        "samples": options.samples,
        "limits": asdict(limits),
        "decoding": asdict(decoding),
    }
    journal = Journal(out, "answers", identity, ranks)
    with progress(total=len(questions), desc="questions", unit="questions", disable=ranks.rank > 0) as bar:
        return answer(
            questions, generator, decoding, samples=options.samples, limits=limits, ranks=ranks, journal=journal,
            on_progress=bar.update,
        )  # fmt: skip


def _ranker(options: PairsConfig) -> Ranker:
    if options.choose_transcript and options.by != "wer":
        raise ValueError(f"pairs: choose_transcript=true needs by=wer; by is {options.by}")
    if options.by == "wer":
        return ByWordErrors(options.margin, options.choose_transcript)
    if options.by == "label":
        return ByLabel()
    if options.by != "judge":
        if not is_metric(options.by):
            raise ValueError(f"pairs: by={options.by!r}: {unknown_metric(options.by, ('label', 'judge'))}")
        return ByMetric(options.by, options.margin)
    if not options.judge_model:
        raise ValueError("pairs: by=judge needs judge_model=NAME, and judge_url=ADDRESS unless its cache is replayed")
    endpoint = None
    if options.judge_url is not None:
        endpoint = Endpoint(options.judge_url, options.judge_model, options.judge_key_env)
    cache = Path(options.out) / "judge.jsonl"
    return ByJudge(Judge(options.judge_model, cache, endpoint))
