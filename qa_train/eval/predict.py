"""The first half of an evaluation: answer every item of a benchmark, to ``predictions.jsonl``.

Items become questions, `qa_train.eval.answers.answer` answers them, and rank 0 writes the answers in the order of the
items and asks the probe's questions.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from qa_train.data.audio.front_end import FRONT_END
from qa_train.data.audio.table_clip import clip_source
from qa_train.data.audio.waveform import BadAudio, audio_tokens, read_header
from qa_train.data.text.sample import AudioPart, Message, Sample, TextPart
from qa_train.eval.answers import Answerer, Journal, Limits, Outcome, answer
from qa_train.eval.benchmarks.benchmark import JUDGED, UNSCORED, Benchmark
from qa_train.eval.listening import listening_probe
from qa_train.eval.questions import Question, load_clips, part_text
from qa_train.eval.ranks import Ranks
from qa_train.eval.result_folder import JUDGEMENTS, PREDICTIONS, RUN, SCORES, recorded
from qa_train.eval.scores.labels import option_text
from qa_train.eval.scores.prediction import without_thoughts
from qa_train.eval.scores.task_metrics import check_references, without_reference
from qa_train.infer.generate import Decoding, prompt_tokens
from qa_train.utils.atomic import write_json, write_json_lines
from qa_train.utils.digests import sha256_of, sha256_of_file

log = logging.getLogger(__name__)

# MMAU's list with the answers, for its own script and its submission page. The option's text stands for a chosen
# letter, which the script would not know; its README and its code name the key differently, so both are there.
OFFICIAL = "model_output.json"
RESULTS = (RUN, PREDICTIONS, SCORES, JUDGEMENTS, OFFICIAL)
# What a run.json must have in common with a new one for the probe and the stored scores to stay valid.
SAME_RUN = {"identity", "clips_sha256", "predictions_sha256"}
# Fields of a row that its prediction keeps.
KEPT = ("group", "question", "meta_info", "task_name", "dataset_name", "choices", "difficulty", "messages", "audios")


def question_of(benchmark: Benchmark, row: Mapping[str, Any]) -> Question:
    """A row as a question to the model.

    Raises:
        ValueError: neither the benchmark nor the row has a prompt, or the row has no reference to score by.
    """
    prompt = benchmark.prompt if benchmark.prompt is not None else row.get("prompt")
    if not isinstance(prompt, str):
        raise ValueError(
            f"benchmark {benchmark.name}, item {row['id']}: no prompt, neither of the benchmark nor of the row"
        )
    gt = row["gt"]
    references = tuple(gt) if isinstance(gt, list) else (gt,)
    check_references(benchmark.metric, [references])
    scored = benchmark.metric not in (UNSCORED, *JUDGED)
    if scored and not any(references) and not without_reference(benchmark.metric):
        raise ValueError(f"benchmark {benchmark.name}, item {row['id']}: no reference to score by {benchmark.metric}")
    clips = (AudioPart(0),) if row["audio"] else ()
    # A benchmark's own base prompt may contain language tags as control tokens; a question of its rows may not.
    text = (TextPart(prompt, trusted=benchmark.template == "base"),) if prompt else ()
    language = row.get("language") or benchmark.language
    sample = Sample(
        str(row["id"]), (Message("user", (*clips, *text)),), len(clips), "eval", language, benchmark.template
    )
    paths = (Path(row["audio"]),) if row["audio"] else ()
    load = partial(load_clips, paths)
    return Question(
        sample, load, references, benchmark.metric, benchmark.name, language, tuple(row.get("choices") or ()), paths
    )


def duration_s(clips: Sequence[Path]) -> float | None:
    """The length of an item's clips by their headers, or None: no clip, or one that cannot be read."""
    try:
        return sum(frames / rate for frames, rate in map(read_header, map(clip_source, clips))) if clips else None
    except BadAudio:
        return None


def predict(
    benchmark: Benchmark,
    rows: Sequence[Mapping[str, Any]],
    answerer: Answerer,
    out: Path,
    *,
    identity: Mapping[str, Any],
    questions: Sequence[Question] | None = None,
    limits: Limits | None = None,
    ranks: Ranks | None = None,
    probe: int = 32,
    data_root: Path | None = None,
    who: str = "",
    on_answers: Callable[[int], None] = lambda n: None,
) -> None:
    """Answer all rows of a benchmark; writes ``out/predictions.jsonl`` and ``out/run.json`` (rank 0).

    ``identity`` is that of the model (hash of the weights, or endpoint and name); with the rows, the
    decoding, the limits and the bytes of the clips it decides whether answers already on disk are kept.
    ``who`` names it for the reader. ``questions``: those of the rows, where they are more than a clip and
    a prompt. A clip that cannot be read and a question that an endpoint refuses give a row with ``error``;
    they are tried again by the next run. Paths below ``data_root`` are written relative to it.

    Raises:
        ValueError: rows that cannot be asked, or an endpoint that refuses the first of them all.
    """
    limits, ranks = limits or Limits(), ranks or Ranks()
    decoding = Decoding(max_new_tokens=benchmark.max_new_tokens)
    questions = [question_of(benchmark, row) for row in rows] if questions is None else questions
    seconds = [duration_s(question.clips) for question in questions]
    questions = [
        replace(question, tokens=prompt_tokens(question.sample, _tokens(duration)))
        for question, duration in zip(questions, seconds, strict=True)
    ]
    full = {**identity, "benchmark": benchmark.name, "rows": _digest(rows, questions)}
    full |= {"decoding": asdict(decoding), "limits": asdict(limits)}
    journal = Journal(out, "journal", full, ranks, partial(_drop_results, out))
    if ranks.rank == 0:
        _tell_of_earlier(out, journal, full, len(rows))
    outcomes = answer(
        questions, answerer, decoding, limits=limits, ranks=ranks, journal=journal, on_progress=on_answers
    )
    if ranks.rank == 0:
        _write(benchmark, rows, questions, seconds, outcomes, out, data_root)
        run = {"identity": full, "benchmark": benchmark.as_dict(), "data_root": str(data_root or ""), "n": len(rows)}
        # By id: a comparison matches items in whatever order they are listed.
        heard = sorted([str(row["id"]), outcome.clips] for row, outcome in zip(rows, outcomes, strict=True))
        run |= {"clips_sha256": sha256_of(heard)}
        run |= {"predictions_sha256": sha256_of_file(out / PREDICTIONS), "answered_by": who}
        kept = _kept_probe(out, run, probe)
        if kept is None:
            found = listening_probe(answerer, questions, outcomes, decoding, probe, limits)
            kept = None if found is None else {"asked": probe, **found}
        write_json(out / RUN, run | {"probe": kept})
    ranks.meet()


def _kept_probe(out: Path, run: Mapping[str, Any], asked: int) -> dict[str, Any] | None:
    """The probe of the same run before, of as many questions; what depends on another run is deleted."""
    before = _run_before(out)
    if not (before.keys() >= SAME_RUN and all(before[name] == _as_json(run)[name] for name in SAME_RUN)):
        _drop_results(out, (SCORES, JUDGEMENTS))
        return None
    probe: dict[str, Any] | None = before.get("probe")
    return probe if (probe or {}).get("asked") == asked else None


def _run_before(out: Path) -> dict[str, Any]:
    """The run.json of the folder; a damaged one is replaced like any other."""
    try:
        return recorded(out / RUN)
    except ValueError:
        return {}


def _tell_of_earlier(out: Path, journal: Journal, identity: Mapping[str, Any], items: int) -> None:
    """Say what the folder holds already; results of another identity are deleted."""
    if journal.known:
        answered = len({item for item, _ in journal.known})
        log.info("%s: %d of %d items are answered; clips that changed are asked again", out, answered, items)
    if _run_before(out).get("identity") not in (None, _as_json(identity)):
        log.warning("%s: the answers there are of another model, data or decoding; they are replaced", out)
        _drop_results(out)


def _digest(rows: Sequence[Mapping[str, Any]], questions: Sequence[Question]) -> str:
    """Of everything asked: ids, names of clips, prompts with their format, references."""
    listing = []
    for row, q in zip(rows, questions, strict=True):
        turns = [[message.role, part_text(message)] for message in q.sample.messages]
        listing.append([row["id"], [clip.name for clip in q.clips], q.sample.template, turns, q.references])
    return sha256_of(listing)


def _as_json(value: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(dict(value)))


def _drop_results(out: Path, names: Sequence[str] = RESULTS) -> None:
    """Results go before the first answer that replaces one of theirs."""
    for name in names:
        (out / name).unlink(missing_ok=True)


def _tokens(duration: float | None) -> int:
    try:
        return audio_tokens(round(duration * FRONT_END.sample_rate)) if duration else 0
    except BadAudio:
        return 0


def _write(
    benchmark: Benchmark,
    rows: Sequence[Mapping[str, Any]],
    questions: Sequence[Question],
    seconds: Sequence[float | None],
    outcomes: Sequence[Outcome],
    out: Path,
    data_root: Path | None,
) -> None:
    lines = []
    for row, question, duration, outcome in zip(rows, questions, seconds, outcomes, strict=True):
        audio = str(row["audio"])
        if data_root is not None and audio and Path(audio).is_relative_to(data_root):
            audio = str(Path(audio).relative_to(data_root))
        line = {
            "id": str(row["id"]),
            "benchmark": benchmark.name,
            "audio": audio,
            "prompt": benchmark.prompt if benchmark.prompt is not None else row.get("prompt"),
            "gt": row["gt"],
            "metric": benchmark.metric,
            "language": question.language,
            "duration_s": None if duration is None else round(duration, 3),
            **{name: row[name] for name in KEPT if row.get(name) is not None},
            "prediction": outcome.text,
            "truncated": outcome.truncated,
        }
        lines.append(line | ({"error": outcome.error} if outcome.error else {}))
    write_json_lines(out / PREDICTIONS, lines)
    if any("official" in row for row in rows):
        filled = []
        for row, outcome in zip(rows, outcomes, strict=True):
            said = option_text("" if outcome.error else without_thoughts(outcome.text), row["choices"])
            filled.append(row["official"] | {"model_output": said, "model_prediction": said})
        write_json(out / OFFICIAL, filled)
