"""Gates of a DPO run: do word error rate and answer length stay where they were while the reward rises?

A reward can be bought with longer answers or with speech that is heard less well. Every ``dpo.gates.every`` steps the
model answers a few held-out transcription questions greedily, and is compared with what it said before its first
step. The numbers are written to ``run.dir/gates.jsonl``. The processes wait for the first one, which asks.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from qa_train.data.text.prompts import PromptBank
from qa_train.eval.eval_sets import EvalSet, record_questions
from qa_train.eval.scores.normalise import transcript_words
from qa_train.eval.scores.task_metrics import word_edits
from qa_train.infer.encoded import EncodedClips
from qa_train.infer.generate import Decoding, Generator, Item
from qa_train.train.mixin import StopRun
from qa_train.train.stage import Stage
from qa_train.utils.atomic import write_text


@dataclass(frozen=True)
class Reading:
    """What the model says at one step: word error rate, and mean words of an answer."""

    step: int
    wer: float
    words: float


class Gates(TrainerCallback):
    """Measures at the start and every few steps, and warns or stops when the model drifts."""

    def __init__(self, stage: Stage, trainer: Any) -> None:
        """ValueError when no record of ``dpo.gates.shards`` can be asked."""
        self.options, self.processor, self.is_main = stage.cfg.dpo.gates, stage.processor, stage.run.is_main
        options, storage, is_main = self.options, stage.cfg.data.storage, self.is_main
        self.path = stage.run.dir / "gates.jsonl"
        bank = PromptBank.load()
        held_out = EvalSet("gates", options.shards, options.task, "chat", options.where, "wer", limit=options.clips)
        self.questions = record_questions(held_out, bank, storage) if is_main else []
        self._clips = EncodedClips()

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """The reading to compare with: of the model before its first step."""
        if self.is_main and not self._forget_after(state.global_step):
            self._keep(self.read(model, state.global_step))

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure, if it is time.

        Raises:
            StopRun: the model has drifted, and ``action`` is stop (in every process).
        """
        if state.global_step % self.options.every:
            return
        verdict: list[str | None] = [None]
        if self.is_main:
            start = Reading(**json.loads(self.path.read_text(encoding="utf-8").splitlines()[0]))
            now = self.read(model, state.global_step)
            self._keep(now)
            verdict[0] = self.verdict(start, now)
            if verdict[0]:
                print(f"gate: {verdict[0]}", flush=True)
        broadcast_object_list(verdict)
        if verdict[0] and self.options.action == "stop":
            raise StopRun(f"{verdict[0]}. Use an earlier checkpoint, a lower learning rate, a larger dpo.beta, or an "
                          "SFT term (dpo.loss_type=[sigmoid,sft])")  # fmt: skip

    def _forget_after(self, step: int) -> bool:
        """Drop the readings of steps that are taken again, and of an earlier run from step 0; whether any is left."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if step and self.path.exists() else []
        kept = []
        for line in lines:
            try:
                reading = Reading(**json.loads(line))
            except ValueError:
                # The line that a killed process was writing.
                break
            kept += [line] if reading.step <= step else []
        write_text(self.path, "".join(f"{line}\n" for line in kept))
        return bool(kept)

    def read(self, model: Any, step: int) -> Reading:
        """Ask every question and score the answers together."""
        # Under peft the model with its adapters active lies inside.
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        generator = Generator(plain, self.processor, clips=self._clips)
        items = [Item(question.sample, question.load()) for question in self.questions]
        answers = generator.generate(items, Decoding(max_new_tokens=self.options.max_new_tokens))
        heard = [transcript_words(a.text, q.language) for a, q in zip(answers, self.questions, strict=True)]
        said = [transcript_words(question.references[0], question.language) for question in self.questions]
        edits, words = word_edits(said, heard).sum(0).tolist()
        return Reading(step, edits / max(1, words), sum(map(len, heard)) / len(heard))

    def verdict(self, start: Reading, now: Reading) -> str | None:
        """What has drifted beyond the limits; None when nothing has."""
        rise = 100 * (now.wer - start.wer)
        if rise > self.options.wer_points:
            return (
                f"step {now.step}: word error rate rose by {rise:.1f} points to {now.wer:.1%} on {len(self.questions)} "
                f"held-out clips, dpo.gates.wer_points allows {self.options.wer_points:g}"
            )
        longest, shortest = start.words * self.options.length_ratio, start.words / self.options.length_ratio
        if not shortest <= now.words <= longest:
            return (
                f"step {now.step}: answers have {now.words:.1f} words instead of {start.words:.1f}, "
                f"dpo.gates.length_ratio allows {shortest:.1f} to {longest:.1f}"
            )
        return None

    def _keep(self, reading: Reading) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(reading)) + "\n")
