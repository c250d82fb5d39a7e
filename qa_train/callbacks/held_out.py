"""Evaluation during training: every few steps the model answers held-out sets, greedily, and is scored.

The questions are shared among the processes batch by batch, by a plan that does not depend on their number; under
ZeRO-3, which cuts the weights, all answer every batch in step and rank 0's answers count. The scores become part of the
step's record in metrics.jsonl (``eval/NAME``, and ``evaluation`` with counts and intervals); the answers lie in
``RUN/held_out/step-N/NAME/predictions.jsonl``, so that ``qa-train eval compare=[...]`` takes two steps.
The clips of the first questions of each set are kept as well, and W&B gets these answers as tables with players.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback

from qa_train.config import EvalSetConfig
from qa_train.data.audio.waveform import BadAudio
from qa_train.data.shards.storage import expand
from qa_train.data.text.prompts import PromptBank
from qa_train.eval.answers import Outcome, predictions
from qa_train.eval.eval_sets import EvalSet, is_right, keep_clip, record_questions
from qa_train.eval.questions import Question, part_text
from qa_train.eval.scores.task_metrics import Prediction, score
from qa_train.infer.encoded import EncodedClips
from qa_train.infer.generate import Decoding, Generator, Item, plan_batches
from qa_train.train.job.distributed import from_main, world_size, zero_stage
from qa_train.train.mixin import AudioTrainerMixin
from qa_train.train.stage import Stage
from qa_train.utils.atomic import write_text

# In the run folder.
FOLDER = "held_out"


class HeldOut(TrainerCallback):
    """Evaluates at the start, every ``evaluation.every`` steps and after the last one.

    A run that is told to stop saves first: the evaluation of that step is made up for when it goes on.
    """

    def __init__(self, stage: Stage, trainer: AudioTrainerMixin) -> None:
        """ValueError: a set without any record, or one that the run trains on."""
        self.options, self.stage, self.trainer = stage.cfg.evaluation, stage, trainer
        data = stage.cfg.data
        bank = PromptBank.load(data.prompt_files, data.prompt_languages)
        self.sets: dict[str, list[Question]] = {}
        for name, chosen in self.options.sets.items():
            if not chosen.seen_in_training:
                _refuse_training_data(name, chosen, stage)
            fields = {k: v for k, v in asdict(chosen).items() if k != "seen_in_training"}
            fields["template"] = chosen.template or ("base" if stage.cfg.stage == "pretrain" else "chat")
            self.sets[name] = record_questions(EvalSet(name, **fields), bank, data.storage)
        self._clips = EncodedClips()
        # Every forward pass then gathers the weights from all processes: all must make the same ones.
        self._in_step = zero_stage(stage.cfg.deepspeed.config) == 3
        run = stage.run
        self._kept = keep_clips(self.sets, run.dir / FOLDER, self.options) if run.is_main else {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """The starting point, or what a stop left out."""
        if from_main(self._due(state) and not self._measured(state.global_step)):
            self.trainer.report(self.evaluate(model, state.global_step, args), own_record=True)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Evaluate, if it is time."""
        stopping = control.should_training_stop and state.global_step < state.max_steps
        if self._due(state) and not stopping:
            self.trainer.report(self.evaluate(model, state.global_step, args))

    def _due(self, state: Any) -> bool:
        return state.global_step % self.options.every == 0 or state.global_step == state.max_steps

    def _measured(self, step: int) -> bool:
        """Whether metrics.jsonl has the scores of this step."""
        path = self.stage.run.metrics
        rows = map(json.loads, path.read_text(encoding="utf-8").splitlines() if path.is_file() else [])
        return any(row["step"] == step and "evaluation" in row for row in rows)

    def evaluate(self, model: Any, step: int, args: Any) -> dict[str, Any]:
        """Answer and score all sets; all processes take part, and all get the numbers."""
        started = time.perf_counter()
        # Under peft the model with its adapters active lies inside.
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        generator = Generator(
            plain,
            self.stage.processor,
            batch_size=self.options.batch_size,
            token_budget=self.options.token_budget,
            # Encoder weights that are cut cannot be hashed: states are not kept from one evaluation to the next.
            clips=EncodedClips() if self._in_step else self._clips,
        )
        with torch.autocast(args.device.type, dtype=torch.bfloat16, enabled=args.bf16):
            mine = self._answer(generator, args.process_index)
        outcomes: dict[tuple[str, int], Outcome] = {}
        for part in reversed(gather_object([mine])):
            outcomes |= part
        numbers: dict[str, Any] = {"evaluation": {}}
        for name, questions in self.sets.items():
            answers = [outcomes[name, i] for i in range(len(questions))]
            answered = predictions(questions, answers)
            found = score(questions[0].metric, answered).as_dict()
            numbers[f"eval/{name}"] = found.pop("value")
            numbers["evaluation"][name] = found
            if self.stage.run.is_main:
                clips = self._kept.get(name, {})
                rows = _rows(questions, answers, answered, clips)
                _write(self.stage.run.dir / FOLDER / f"step-{step}" / name / "predictions.jsonl", rows)
                self._show(step, name, [row for row in rows if "clip" in row])
        numbers["eval_s"] = round(time.perf_counter() - started, 3)
        if self.stage.run.is_main:
            print(summary(step, numbers), flush=True)
        return numbers

    def _show(self, step: int, name: str, rows: list[dict[str, Any]]) -> None:
        """W&B's table of the questions whose clips are kept."""
        clip = self.stage.run.dir / FOLDER
        cells = [[r["prompt"], clip / r["clip"], r["gt"], r["prediction"], r["right"]] for r in rows]
        if cells:
            columns = ["question", "audio", "reference", "prediction", "right"]
            self.stage.writer.table(step, f"held_out/{name}", columns, cells)

    def _answer(self, generator: Generator, rank: int) -> dict[tuple[str, int], Outcome]:
        """This rank's share of the batches of all sets; under ZeRO-3 all of them."""
        decoding = Decoding(max_new_tokens=self.options.max_new_tokens)
        found: dict[tuple[str, int], Outcome] = {}
        number = 0
        for name, questions in self.sets.items():
            lengths = [question.tokens for question in questions]
            rows, tokens = self.options.batch_size, self.options.token_budget
            for batch in plan_batches(lengths, rows=rows, tokens=tokens, new_tokens=decoding.max_new_tokens):
                if self._in_step or number % world_size() == rank:
                    answered = _answer_batch(generator, questions, batch, decoding, self._in_step)
                    found |= {(name, i): outcome for i, outcome in answered.items()}
                    self.trainer.beat()
                number += 1
        return found


def _answer_batch(
    generator: Generator, questions: list[Question], batch: list[int], decoding: Decoding, in_step: bool
) -> dict[int, Outcome]:
    """``in_step``: all processes answer this batch together, without what any of them could not read."""
    items: dict[int, Item] = {}
    found: dict[int, Outcome] = {}
    for i in batch:
        try:
            items[i] = Item(questions[i].sample, questions[i].load())
        except BadAudio as error:
            found[i] = Outcome(error=str(error))
    if in_step:
        for others in gather_object([found]):
            found = others | found
        items = {i: item for i, item in items.items() if i not in found}
    answers = generator.generate([*items.values()], decoding)
    return found | {i: Outcome(a.text, a.truncated) for i, a in zip(items, answers, strict=True)}


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

    Questions are in an order that says nothing of them. Returns by set: question's number -> path below ``folder``.
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
                continue  # its answer says why
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
    for i, (question, outcome, answer) in enumerate(zip(questions, outcomes, answered, strict=True)):
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
            "right": is_right(question.metric, answer),
        }
        clip = {"clip": clips[i]} if i in clips else {}
        rows.append(row | clip | ({"error": outcome.error} if outcome.error else {}))
    return rows


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _refuse_training_data(name: str, held_out: EvalSetConfig, stage: Stage) -> None:
    """ValueError when a source of the run may hold the records of a set: same shard, and filters that can both hold."""
    wanted = {_real(path) for path in expand(held_out.shards)}
    for source in stage.batches.sources:
        shared = sorted(wanted & {_real(path) for path in source.shards})
        if source.weight and shared and not _apart(held_out.where, source.cfg.where):
            raise ValueError(
                f"evaluation.sets.{name} and data.sources.{source.name} read the same records of {shared[0]}: the "
                f"scores would be of training data. Give both a where that keeps them apart (e.g. split), other "
                f"shards, or evaluation.sets.{name}.seen_in_training=true if that is meant"
            )


def _apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether no record can meet both filters."""

    def values(wanted: Any) -> list[Any]:
        return wanted if isinstance(wanted, list) else [wanted]

    return any(not [v for v in values(one[key]) if v in values(other[key])] for key in one.keys() & other.keys())


def _real(path: str) -> str:
    return path if "://" in path else str(Path(path).resolve())
