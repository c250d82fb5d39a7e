"""The report of an evaluation: our numbers next to the published ones, what may be compared, what went wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qa_train.data.audio.waveform import BadAudio
from qa_train.report.data_uri import MAX_SECONDS, data_uri
from qa_train.report.document import render
from qa_train.report.markdown import plain

MAX_PLAYERS = 30
# Separate columns; every other system is a baseline.
COLUMNS = {"hf": "HF weights", "paper": "paper"}
# Columns of words; the others are of numbers.
_KINDS = {"other systems": "", "odd answers": "", "probe": ""}
# Descriptions of metrics for benchmarks without their own.
RULES = {
    "wer": "tags out; normalised as the released evaluation does for the language of the row; corpus word error rate "
    "(characters for zh, yue and ja)",
    "cer": "as wer, over characters",
    "first_line_wer": "as wer, of the first line",
    "rest_bleu": "BLEU of what follows the first line, as English",
    "cp_wer": "words of each speaker, speakers assigned for the fewest errors (cpWER); names and times do not count",
    "word_times": "share of reference words said with start and end within 0.2 s",
    "timed_wer": "as wer, without the times",
    "boundary_f1": "F1 of starts and ends within 0.2 s",
    "boundary_error": "mean distance of the reference's starts and ends to the nearest of the answer, in milliseconds",
    "bleu": "sacrebleu corpus BLEU, tokenised by the language of the reference (zh, ja-mecab, else 13a)",
    "chrf": "sacrebleu corpus chrF",
    "accuracy": "the answer is the label, whatever case and marks",
    "exact": "the answer is the label letter for letter",
    "contains": "the answer contains the label and no other choice",
    "choice": "the chosen option by letter or text; an answer that chooses none is wrong",
    "refusal": "the answer holds one of VoiceBench's phrases of refusal, in any letter case",
    "bbh": "yes, no, (A), (B), valid, invalid or a number as stated in the answer; an answer with none is wrong",
    "ifeval": "mean of the shares of prompts and of instructions followed, strictly and loosely",
    "macro_f1": "mean of the labels' F1",
    "map": "mean average precision of the labels that are listed",
    "cider": "CIDEr-D x 100 (pycocoevalcap, PTB tokens)",
    "rouge_l": "ROUGE-L x 100 (pycocoevalcap, PTB tokens)",
    "meteor": "METEOR 1.5 x 100 of the summed statistics (pycocoevalcap, PTB tokens)",
}
COUNTS = ("empty", "unparsed", "failed", "truncated", "judge_failed", "judge_refused", "judge_unread")

Results = Mapping[str, Mapping[str, Any]]


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.2f}"


def _ours(result: Mapping[str, Any]) -> str:
    if result.get("value") is None:
        return "–"
    if "ci_low" not in result:
        return f"{result['value']:.2f}"
    # With one item, or equal items, resampling gives no information: no interval does not mean a narrow one.
    drawn = result["ci_low"] < result["ci_high"]
    interval = f"{result['ci_low']:.2f}, {result['ci_high']:.2f}" if drawn else "–"
    return f"{result['value']:.2f} [{interval}]"


def _published(results: Results) -> dict[str, Callable[[Mapping[str, Any]], str]]:
    """{column: its cell of a benchmark} of the published numbers; columns that no benchmark has are omitted."""
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        title: lambda benchmark, key=key: _number(benchmark["numbers"].get(key))  # type: ignore[misc]
        for key, title in COLUMNS.items()
    }
    columns["other systems"] = lambda benchmark: _baselines(benchmark) or "–"
    benchmarks = [result["benchmark"] for result in results.values()]
    return {title: cell for title, cell in columns.items() if any(cell(each) != "–" for each in benchmarks)}


def _baselines(benchmark: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in benchmark["numbers"].items() if k not in COLUMNS)


def _counts(result: Mapping[str, Any]) -> str:
    return ", ".join(f"{result[k]} {k.replace('_', ' ')}" for k in COUNTS if result.get(k)) or "none"


def listening(result: Mapping[str, Any]) -> str:
    """The probe in words."""
    probe = result.get("probe")
    if not probe:
        return "not probed"
    shares = f"changed by silence {probe['silence']['changed_percent']:.0f} %"
    if probe.get("other_clip"):
        shares += f", by another clip {probe['other_clip']['changed_percent']:.0f} %"
    again = (probe.get("again") or {}).get("changed_percent", 0.0)
    if again:
        shares += f", by asking the same again {again:.0f} %"
    unknown = "cannot be told: it does not repeat itself" if again else "too few to tell"
    word = {True: "listens", False: "DOES NOT LISTEN", None: unknown}[probe["listens"]]
    return f"{word} ({shares}, n = {probe['silence']['n']})"


def _warnings(results: Results) -> list[str]:
    """Caveats of the numbers."""
    notes = []
    models = {name: (r.get("answered_by", ""), _model(r)) for name, r in results.items()}
    if len({model for _, model in models.values()}) > 1:
        said = {name: who or "unknown" for name, (who, _) in models.items()}
        notes += [f"{name}: answered by {who}, one of several models here" for name, who in said.items()]
    for name, result in results.items():
        if result.get("why"):
            notes.append(f"{name}: no score: {result['why']}")
        if (result.get("probe") or {}).get("listens") is False:
            notes.append(f"{name}: the model does not listen; its score is not evidence of hearing")
        if result.get("items_differ"):
            notes.append(f"{name}: {result['n']} items, published are {result['items_expected']}: other data")
        if result.get("first_error"):
            none = (
                "no item was answered, the number is not informative"
                if result["failed"] == result["n"]
                else (f"{result['failed']} items without an answer, which count as empty")
            )
            notes.append(f"{name}: {none}; {result['first_error']}")
        if result.get("judge_unread"):
            notes.append(
                f"{name}: {result['judge_unread']} ratings of the judge never came or could not be read: not in the "
                f"mean, which is {_number(result['strict'])} with them as 0"
            )
        if result.get("speaks_to_judge"):
            count = result["speaks_to_judge"]
            notes.append(f"{name}: {count} answers hold parts of the judge's prompt: read its ratings of them")
        if result.get("categories_missing"):
            missing = ", ".join(result["categories_missing"])
            notes.append(f"{name}: no rated item of {missing}: the average is of the other categories alone")
        if result.get("other_labels_unknown"):
            notes.append(
                f"{name}: of {result['other_labels_unknown']} items the other labels are unknown: an answer that says "
                "several is right"
            )
        if joined := result.get("labels_in_one_text"):
            notes.append(f"{name}: {joined} references with commas are one label each: give gt as a list, or choices")
        if result.get("right_is_no_option"):
            notes.append(f"{name}: of {result['right_is_no_option']} items the right answer is no option: never right")
        if result.get("language_unknown"):
            codes = ", ".join(map(repr, (result.get("language_codes") or [])[:5]))
            notes.append(
                f"{name}: of {result['language_unknown']} items the language is unknown"
                f"{f' ({codes}: not a code such as en, zh or yue)' if codes else ''}: scored by words, without the "
                "rules of a language"
            )
        for metric, one in (result.get("by_metric") or {}).items():
            if one.get("why"):
                notes.append(f"{name}: no {metric}: {one['why']}")
        found = result.get("contamination")
        if found is not None and _is_contaminated(found):
            notes.append(f"{name}: {_contaminated(found)}")
    return notes


def _model(result: Mapping[str, Any]) -> tuple[Any, ...]:
    """The identity of a model: its weights, or its endpoint."""
    return tuple(result.get("identity", {}).get(key) for key in ("weights", "endpoint", "model"))


def _is_contaminated(found: Mapping[str, Any]) -> bool:
    return bool(found["same_clip"] or found.get("same_sound") or found["same_words"])


def _contaminated(found: Mapping[str, Any]) -> str:
    if "same_sound" not in found:
        # Of an earlier version, which looked at bytes and words alone.
        return (
            f"in the training shards: {found['same_clip']} of {found['checked_clips']} clips by bytes, "
            f"{found['same_words']} of {found['checked_texts']} references by words"
        )
    missed = found["as_long"] - found["compared"]
    heard = (
        f"{found['compared']} training clips of about their length compared{f', {missed} more not' if missed else ''}"
    )
    return (
        f"in the training shards: {found['same_clip']} of {found['checked_clips']} clips by bytes, "
        f"{found['same_sound']} of {found['checked_sounds']} by sound (re-encoded, resampled, louder; {heard}), "
        f"{found['same_words']} of {found['checked_texts']} references by words; cuts, other speeds and paraphrases "
        "are not seen"
    )


def _notes(name: str, result: Mapping[str, Any]) -> list[str]:
    """How one benchmark was scored, and what may be compared."""
    benchmark = result["benchmark"]
    own = (result.get("own_code") or {}).get("about")
    notes = [f"rule: {benchmark['rule'] or own or RULES.get(benchmark['metric'], benchmark['metric'])}"]
    if benchmark["comparable"]:
        notes.append(f"comparable: {benchmark['comparable']}")
    official = result.get("official")
    if official and "value" in official:
        left = f"; {official['left_out']} answers skipped" if official.get("left_out") else ""
        notes.append(f"official number {_number(official['value'])} ({official['what']}{left})")
    elif official:
        notes += _official_orders(official)
    if result.get("parts"):
        notes.append(", ".join(f"{part} {value:.2f}" for part, value in result["parts"].items()))
    if result.get("suite"):
        notes.append(result["suite"])
    if result.get("strict") is not None:
        notes.append(f"judge {result['judge']}, unread lines as 0: {_number(result['strict'])}")
        if result.get("order_agreement_percent") is not None:
            won = f"better than the reference in {result['win_rate_percent']:.2f} % of the items"
            notes[-1] += f"; order agreement {result['order_agreement_percent']:.2f} %; {won}"
    found = result.get("contamination")
    if found is not None and not _is_contaminated(found):
        notes.append(_contaminated(found))
    if result.get("reference_system"):
        reference = result["reference_system"]
        notes.append(f"reference system {_number(reference['value'])}, difference {reference['difference']:+.2f}")
    return [f"{name}: {note}" for note in notes]


def _official_orders(official: Mapping[str, Any]) -> list[str]:
    """AIR-Bench Chat as cal_score.py counts it, order by order."""
    notes = []
    for order, place in (("reference_first", 3), ("answer_first", 2)):
        found = official[order]
        means = ", ".join(f"{name} {row[place]:.2f} (n = {row[0]})" for name, row in found["groups"].items())
        failed = f"{found['fail_num']} lines skipped"
        notes.append(
            f"official, {order.replace('_', ' ')}: {means or 'no line was read'}; {failed} ({official['what']})"
        )
    return notes


def _parts(result: Mapping[str, Any]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """The breakdowns that have more than one class, or belong to a benchmark of tasks."""
    titles = {
        "by_metric": "metric",
        "groups": "task",
        "by_group": "group",
        "by_length": "clip length",
        "by_language": "language",
    }
    titles["by_position"] = "place of the right option"
    return {title: result[key] for key, title in titles.items() if len(result.get(key) or {}) > 1}


def markdown_report(results: Results) -> str:
    """One table with a row per benchmark, notes, and the breakdowns."""
    published = _published(results)
    heads = ["benchmark", "metric", "ours [95 %]", *published, "n", "odd answers", "probe"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, result in results.items():
        benchmark = result["benchmark"]
        cells = [
            benchmark["title"] or name,
            benchmark["metric"],
            _ours(result),
            *(cell(benchmark) for cell in published.values()),
            str(result["n"]),
            _counts(result),
            listening(result),
        ]
        lines.append("| " + " | ".join(map(plain, cells)) + " |")
    if warnings := _warnings(results):
        lines += ["", "Before believing these numbers:", "", *(f"- {plain(note)}" for note in warnings)]
    lines += ["", "How they were scored:", ""]
    lines += [f"- {plain(note)}" for name, result in results.items() for note in _notes(name, result)]
    for name, result in results.items():
        for title, classes in _parts(result).items():
            lines += ["", f"{plain(name)} by {title}:", "", f"| {title} | value [95 %] | n |", "|---|---|---|"]
            lines += [f"| {plain(k)} | {_ours(v)} | {v.get('n', '')} |" for k, v in classes.items()]
    return "\n".join(lines) + "\n"


def _rows(results: Results, published: Mapping[str, Callable[[Mapping[str, Any]], str]]) -> list[dict[str, Any]]:
    rows = []
    for name, result in results.items():
        benchmark = result["benchmark"]
        direction = "lower is better" if result.get("lower_is_better") else "higher is better"
        deaf = (result.get("probe") or {}).get("listens") is False
        cells = [
            (_ours(result), "num"),
            *((cell(benchmark), _KINDS.get(title, "num")) for title, cell in published.items()),
            (str(result["n"]), "num"),
            (_counts(result), ""),
            (listening(result), "bad" if deaf else ""),
        ]
        rows.append({"title": _title(name, result), "metric": f"{benchmark['metric']}, {direction}", "cells": cells})
    return rows


def _title(name: str, result: Mapping[str, Any]) -> str:
    return str(result["benchmark"]["title"] or name)


def _breakdowns(results: Results) -> list[dict[str, Any]]:
    tables = []
    for name, result in results.items():
        published = result["benchmark"]["group_numbers"]
        for title, classes in _parts(result).items():
            others = {k: ", ".join(f"{s} {x}" for s, x in published.get(k, {}).items()) for k in classes}
            rows = [{"name": k, "ours": _ours(v), "n": v.get("n", ""), "others": others[k]} for k, v in classes.items()]
            tables.append({"title": _title(name, result), "by": title, "rows": rows, "compared": any(others.values())})
    return tables


def _clip(root: str, audio: str, below: Path | None) -> dict[str, str]:
    """``src`` of the player of a clip, and a ``note`` where it is cut, or why there is none."""
    try:
        path = Path(root) / audio
        if below is not None and not path.resolve().is_relative_to(below.resolve()):
            return {"note": f"no player: {path.name} does not lie below data_root={below}"}
        uri, cut = data_uri(path)
    except (BadAudio, OSError, ValueError, RuntimeError) as error:
        return {"note": f"no player: {error}"}
    return {"src": uri, "note": f"first {MAX_SECONDS:.0f} s of the clip" if cut else ""}


def _worst(results: Results, below: Path | None) -> list[dict[str, Any]]:
    cards: list[dict[str, Any]] = []
    # Clips are inside the page: each benchmark has its share of them.
    share = max(1, MAX_PLAYERS // max(1, sum(bool(result.get("worst")) for result in results.values())))
    for name, result in results.items():
        for number, item in enumerate(result.get("worst") or []):
            clip = {}
            if item.get("audio"):
                more = {"note": f"no player, the page holds {share} a benchmark: {item['audio']}"}
                clip = _clip(result.get("data_root", ""), item["audio"], below) if number < share else more
            card = {"src": "", "note": "", **clip, "title": _title(name, result), "id": item["id"]}
            card |= {"prompt": item.get("prompt") or item.get("question") or "", "said": item["prediction"]}
            card |= {"error": item.get("error"), "judge": item.get("judge") or []}
            card["wanted"] = item["gt"] if isinstance(item["gt"], str) else " / ".join(item["gt"])
            cards.append(card)
    return cards


def _fact(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)


def render_benchmarks(results: Results, title: str = "Evaluation", below: Path | None = None) -> str:
    """The whole page, self-contained; clips of the worst cases are read from the data root and embedded.

    ``below``: only clips that lie in this folder, wherever links lead, for results that somebody else may have made.
    """
    first = next(iter(results.values()), {})
    facts = {"answered by": first.get("answered_by", ""), **first.get("identity", {})}
    facts = {k: v for k, v in facts.items() if k not in ("benchmark", "rows")}
    if len({_model(result) for result in results.values()}) > 1:
        facts = {"answered by": "several models: see above"}
    published = _published(results)
    names = ("ours", *published, "n", "odd answers", "probe")
    notes = {name: [note.removeprefix(f"{name}: ") for note in _notes(name, each)] for name, each in results.items()}
    return render(
        "scores.html",
        styles=("scores.css",),
        title=title,
        columns=[(name, _KINDS.get(name, "num")) for name in names],
        rows=_rows(results, published),
        warnings=_warnings(results),
        scored=[(_title(name, result), notes[name]) for name, result in results.items()],
        breakdowns=_breakdowns(results),
        worst=_worst(results, below),
        facts=[(name, _fact(value)) for name, value in facts.items()],
    )
