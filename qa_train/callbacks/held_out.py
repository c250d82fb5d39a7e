"""Evaluation during training: every few steps the model answers held-out sets, greedily, and is scored.

Batches of questions are distributed over the processes by a plan that does not depend on their number. ZeRO-3 shards
the weights, so there all ranks answer every batch together and rank 0's answers are used. The scores become part of the
step's record in metrics.jsonl (``eval/NAME``, and ``evaluation`` with counts and intervals); the answers are in
``RUN/held_out/step-N/NAME/predictions.jsonl``, so that ``qa-train eval compare=[...]`` takes two steps.
``evaluation.stop`` ends a run whose scores move too far from its first evaluation, see `qa_train.callbacks.drift`. The
clips of the first questions of each set are kept as well, and W&B gets these answers as tables with players.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback

from qa_train.callbacks.drift import check_rule, drifted, mean_words
from qa_train.config import EvalSetConfig
from qa_train.data.audio.waveform import BadAudio
from qa_train.data.shards.catalog import open_shards, shard_paths
from qa_train.data.shards.same_recordings import same_recordings
from qa_train.data.text.prompts import PromptBank
from qa_train.eval.answers import Limits, Outcome, answer, predictions
from qa_train.eval.eval_sets import is_right, keep_clip, record_questions
from qa_train.eval.questions import Question, part_text
from qa_train.eval.ranks import Ranks
from qa_train.eval.result_folder import PREDICTIONS
from qa_train.eval.scores.task_metrics import Prediction, score
from qa_train.infer.encoded import EncodedClips
from qa_train.infer.generate import Decoding, Generator
from qa_train.train.job.distributed import by_main, from_main, world_size
from qa_train.train.mixin import AudioTrainerMixin
from qa_train.train.safety.guards import StopRun
from qa_train.train.stage import Stage
from qa_train.utils.atomic import write_json_lines
from qa_train.utils.progress import say

# In the run folder.
FOLDER = "held_out"


class HeldOut(TrainerCallback):
    """Evaluates at the start, every ``evaluation.every`` steps and after the last one.

    A run that is told to stop saves first; the evaluation of that step runs after the resume.
    """

    def __init__(self, stage: Stage, trainer: AudioTrainerMixin) -> None:
        """ValueError: a set without any record, or one that the run trains on."""
        self.options, self.stage, self.trainer = stage.cfg.evaluation, stage, trainer
        data = stage.cfg.data
        bank = PromptBank.load(data.prompt_files, data.prompt_languages)
        self.sets: dict[str, list[Question]] = {}
        for name, chosen in self.options.sets.items():
            if not chosen.seen_in_training:
                refuse_training_data(name, chosen, stage)
            asked = replace(chosen, template=chosen.template or stage.cfg.kind.template)
            self.sets[name] = record_questions(name, asked, bank, data.storage)
        for name, rule in self.options.stop.items():
            check_rule(name, rule, self.sets[name][0].metric)
        self._clips = EncodedClips()
        self._limits = Limits(self.options.batch_size, self.options.token_budget)
        # Every forward pass then gathers the weights from all processes: all must make the same ones.
        self._in_step = stage.cfg.deepspeed.zero_stage == 3
        run = stage.run
        self._kept = keep_clips(self.sets, run.dir / FOLDER, self.options) if run.is_main else {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """The evaluation at the start, or the one that a stop skipped."""
        if from_main(self._due(state) and all(row["step"] != state.global_step for row in self._records())):
            self._measure(model, state.global_step, args, own_record=True)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Evaluate, if it is time.

        Raises:
            StopRun: a set has moved further from the first evaluation than ``evaluation.stop`` allows (every process).
        """
        stopping = control.should_training_stop and state.global_step < state.max_steps
        if self._due(state) and not stopping:
            self._measure(model, state.global_step, args)

    def _due(self, state: Any) -> bool:
        return state.global_step % self.options.every == 0 or state.global_step == state.max_steps

    def _records(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl that have scores."""
        path = self.stage.run.metrics
        rows = map(json.loads, path.read_text(encoding="utf-8").splitlines() if path.is_file() else [])
        return [row for row in rows if "evaluation" in row]

    def _measure(self, model: Any, step: int, args: Any, *, own_record: bool = False) -> None:
        """Evaluate, write the scores down, and end the run if they have drifted; a collective call."""
        numbers = self.evaluate(model, step, args)
        found = by_main(lambda: self._drifts(numbers) if self.options.stop else {})
        ends = [words for name, words in found.items() if self.options.stop[name].action == "stop"]
        # A step that ends the run is not logged any more.
        self.trainer.report(numbers, own_record=own_record or bool(ends))
        if found and self.stage.run.is_main:
            say(f"step {step}: {'; '.join(found.values())}")
        if ends:
            raise StopRun(
                f"step {step}: {'; '.join(ends)}. Use an earlier checkpoint, a lower learning rate, "
                f"{self.stage.cfg.kind.against_drift}"
            )

    def _drifts(self, numbers: Mapping[str, Any]) -> dict[str, str]:
        """What has drifted since the first evaluation of each set, by the set's name."""
        records, found = self._records(), {}
        for name, rule in self.options.stop.items():
            start = next((row for row in records if "words" in row["evaluation"].get(name, {})), None)
            words = drifted(name, rule, start, numbers) if start is not None else None
            if words is not None:
                found[name] = words
        return found

    def evaluate(self, model: Any, step: int, args: Any) -> dict[str, Any]:
        """Answer and score all sets; all processes take part, and all get the numbers."""
        started = time.perf_counter()
        # Under peft the model with active adapters is an inner module.
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        generator = Generator(
            plain,
            self.stage.processor,
            # Encoder weights that are cut cannot be hashed: states are not kept from one evaluation to the next.
            clips=EncodedClips() if self._in_step else self._clips,
        )
        with torch.autocast(args.device.type, dtype=torch.bfloat16, enabled=args.bf16):
            outcomes = iter(self._answer(generator, args.process_index))
        numbers: dict[str, Any] = {"evaluation": {}}
        for name, questions in self.sets.items():
            answers = list(islice(outcomes, len(questions)))
            answered = predictions(questions, answers)
            found = score(questions[0].metric, answered).as_dict() | {"words": mean_words(questions, answers)}
            numbers[f"eval/{name}"] = found.pop("value")
            numbers["evaluation"][name] = found
            if self.stage.run.is_main:
                clips = self._kept.get(name, {})
                rows = _rows(questions, answers, answered, clips)
                folder = self.stage.run.dir / FOLDER / f"step-{step}" / name
                folder.mkdir(parents=True, exist_ok=True)
                write_json_lines(folder / PREDICTIONS, rows)
                self._show(step, name, [row for row in rows if "clip" in row])
        numbers["eval_s"] = round(time.perf_counter() - started, 3)
        if self.stage.run.is_main:
            say(summary(step, numbers))
        return numbers

    def _show(self, step: int, name: str, rows: list[dict[str, Any]]) -> None:
        """W&B's table of the questions whose clips are kept."""
        clip = self.stage.run.dir / FOLDER
        cells = [[r["prompt"], clip / r["clip"], r["gt"], r["prediction"], r["right"]] for r in rows]
        if cells:
            columns = ["question", "audio", "reference", "prediction", "right"]
            self.stage.writer.table(step, f"held_out/{name}", columns, cells)

    def _answer(self, generator: Generator, rank: int) -> list[Outcome]:
        """The outcomes of all sets, one set after the other, on every rank."""
        return answer(
            [question for questions in self.sets.values() for question in questions],
            generator,
            Decoding(max_new_tokens=self.options.max_new_tokens),
            limits=self._limits,
            ranks=Ranks(rank, world_size(), lambda value: list(gather_object([value]))),
            in_step=self._in_step,
            on_progress=lambda n: self.trainer.beat(),
        )


def summary(step: int, numbers: Mapping[str, Any]) -> str:
    """One line for the person who watches."""
    parts = []
    for name, found in numbers["evaluation"].items():
        odd = ", ".join(f"{found[k]} {k}" for k in ("empty", "truncated", "failed", "unparsed") if found[k])
        value, interval = numbers[f"eval/{name}"], f"{found['ci_low']:.1f} to {found['ci_high']:.1f}"
        parts.append(f"{name} {value:.1f} ({found['metric']}, {interval}, n = {found['n']}{'; ' + odd if odd else ''})")
    return f"evaluation at step {step}: " + "; ".join(parts) + f"; {numbers['eval_s']:.1f} s"


def keep_clips(sets: Mapping[str, list[Question]], folder: Path, options: Any) -> dict[str, dict[int, str]]:
    """Keep the clips of the first ``options.samples`` questions of each set, all within ``options.samples_mib``.

    Questions are in random order. Returns by set: question's number -> path below ``folder``.
    """
    kept: dict[str, dict[int, str]] = {name: {} for name in sets}
    room = options.samples_mib * 2**20
    # Question by question over all sets, so that a small allowance does not go to the first set alone.
    for i in range(options.samples):
        for name, questions in sets.items():
            if i >= len(questions) or not questions[i].sample.num_clips:
                continue
            try:
                path = keep_clip(questions[i], i, folder / "clips" / name)
            except BadAudio:
                continue  # its answer has the reason
            room -= path.stat().st_size
            if room < 0:
                path.unlink()
                return kept
            kept[name][i] = str(path.relative_to(folder))
    return kept


def _rows(
    questions: list[Question], outcomes: list[Outcome], answered: list[Prediction], clips: Mapping[int, str]
) -> list[dict[str, Any]]:
    """The lines of predictions.jsonl."""
    rows = []
    seen: Counter[str] = Counter()
    for i, (question, outcome, said) in enumerate(zip(questions, outcomes, answered, strict=True)):
        references = question.references
        key = question.sample.key
        seen[key] += 1
        row = {
            # Records of two shards may share a key; their order is that of the shards.
            "id": key if seen[key] == 1 else f"{key}#{seen[key]}",
            "prompt": part_text(question.sample.messages[-1]),
            "gt": references[0] if len(references) == 1 else list(references),
            "metric": question.metric,
            "language": question.language,
            "choices": list(question.choices),
            "prediction": outcome.text,
            "truncated": outcome.truncated,
            # null: no matter of right and wrong, as a translation.
            "right": is_right(question.metric, said),
        }
        clip = {"clip": clips[i]} if i in clips else {}
        rows.append(row | clip | ({"error": outcome.error} if outcome.error else {}))
    return rows


def refuse_training_data(name: str, held_out: EvalSetConfig, stage: Stage) -> None:
    """ValueError when a source of the run holds records of a set: the same shard, or the same recordings in another."""
    wanted = {_real(path) for path in shard_paths(held_out.shards, stage.cfg.data.storage)}
    table = open_shards(held_out.shards, cfg=stage.cfg.data.storage)
    for source in stage.batches.sources:
        if not source.weight:
            continue
        what, keys = "", list[str]()
        shared = sorted(wanted & {_real(path) for path in source.shards})
        if shared and not _apart(held_out.where, source.cfg.where):
            what = f"read the same records of {shared[0]}"
        elif keys := same_recordings(table, held_out.where, source.table, source.cfg.where):
            what = f"hold {len(keys)} of the same recordings, e.g. {keys[0]}"
        if what:
            raise ValueError(
                f"evaluation.sets.{name} and data.sources.{source.name} {what}: the scores would be of training data. "
                "Separate them with where (e.g. split), use other shards, or set "
                f"evaluation.sets.{name}.seen_in_training=true if that is meant"
            )


def _apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether no record can meet both filters."""

    def values(wanted: Any) -> list[Any]:
        return wanted if isinstance(wanted, list) else [wanted]

    return any(not [v for v in values(one[key]) if v in values(other[key])] for key in one.keys() & other.keys())


def _real(path: str) -> str:
    return path if "://" in path else str(Path(path).resolve())
