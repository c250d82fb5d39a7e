"""What has to be said of the scores of an evaluation: what to doubt, how they were made, what may be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Descriptions of metrics for benchmarks without their own.
RULES = {
    "wer": "tags removed; normalized as in the released evaluation for the language of the row; corpus word error rate "
    "(characters for zh, yue and ja)",
    "cer": "as wer, over characters",
    "first_line_wer": "as wer, of the first line",
    "rest_bleu": "BLEU of what follows the first line, as English",
    "cp_wer": "words of each speaker, speakers assigned for the fewest errors (cpWER); names and times are ignored",
    "word_times": "share of reference words said with start and end within 0.2 s",
    "timed_wer": "as wer, without the times",
    "boundary_f1": "F1 of starts and ends within 0.2 s",
    "boundary_error": "mean distance of the reference's starts and ends to the nearest of the answer, in milliseconds",
    "bleu": "sacrebleu corpus BLEU, tokenised by the language of the reference (zh, ja-mecab, else 13a)",
    "chrf": "sacrebleu corpus chrF",
    "accuracy": "the answer equals the label, ignoring case and punctuation",
    "exact": "the answer equals the label exactly",
    "contains": "the answer contains the label and no other choice",
    "choice": "the chosen option by letter or text; an answer that chooses none is wrong",
    "refusal": "the answer contains one of VoiceBench's refusal phrases, in any case",
    "bbh": "yes, no, (A), (B), valid, invalid or a number as stated in the answer; an answer with none is wrong",
    "ifeval": "mean of the shares of prompts and of instructions followed, strictly and loosely",
    "macro_f1": "mean of the labels' F1",
    "map": "mean average precision over the listed labels",
    "cider": "CIDEr-D x 100 (pycocoevalcap, PTB tokens)",
    "rouge_l": "ROUGE-L x 100 (pycocoevalcap, PTB tokens)",
    "meteor": "METEOR 1.5 x 100 of the summed statistics (pycocoevalcap, PTB tokens)",
}

Results = Mapping[str, Mapping[str, Any]]


def number(value: Any) -> str:
    """With two decimals, or a dash."""
    return "–" if value is None else f"{value:.2f}"


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
        shares += f", by asking again {again:.0f} %"
    unknown = "undecided: its answers change from one run to the next" if again else "undecided: too few items"
    word = {True: "listens", False: "DOES NOT LISTEN", None: unknown}[probe["listens"]]
    return f"{word} ({shares}, n = {probe['silence']['n']})"


def warnings_of(results: Results) -> list[str]:
    """What to know before believing the numbers, each with the name of its benchmark."""
    models = {name: (result.get("answered_by") or "unknown", identity_of(result)) for name, result in results.items()}
    several = len({model for _, model in models.values()}) > 1
    notes = [f"{name}: answered by {who}, one of several models here" for name, (who, _) in models.items() if several]
    return notes + [f"{name}: {note}" for name, result in results.items() for note in _warnings(result)]


def _warnings(result: Mapping[str, Any]) -> Iterator[str]:
    if result.get("why"):
        yield f"no score: {result['why']}"
    if (result.get("probe") or {}).get("listens") is False:
        yield "the model does not listen; its score is not evidence of hearing"
    if result.get("items_differ"):
        yield f"{result['n']} items, published are {result['items_expected']}: other data"
    if result.get("first_error"):
        some = f"{result['failed']} items without an answer, which count as empty"
        none = "no item was answered, the number is not informative"
        yield f"{none if result['failed'] == result['n'] else some}; {result['first_error']}"
    if count := result.get("judge_unread"):
        yield (
            f"{count} ratings of the judge never came or could not be read: not in the mean, which is "
            f"{number(result['strict'])} with them as 0"
        )
    if count := result.get("speaks_to_judge"):
        yield f"{count} answers contain parts of the judge's prompt: check their ratings"
    if missing := result.get("categories_missing"):
        yield f"no rated item in {', '.join(missing)}: the average covers the other categories only"
    if count := result.get("other_labels_unknown"):
        yield f"{count} items do not list the other labels: an answer that names several counts as right"
    if count := result.get("labels_in_one_text"):
        yield f"{count} references contain commas and count as one label each: give gt as a list, or give choices"
    if count := result.get("right_is_no_option"):
        yield f"{count} items have a right answer that is not among their options: they always count as wrong"
    if count := result.get("language_unknown"):
        codes = ", ".join(map(repr, (result.get("language_codes") or [])[:5]))
        which = f" ({codes}: not a code such as en, zh or yue)" if codes else ""
        yield f"{count} items have an unknown language{which}: scored by words, without language-specific rules"
    for metric, one in (result.get("by_metric") or {}).items():
        if one.get("why"):
            yield f"no {metric}: {one['why']}"
    found = result.get("contamination")
    if found is not None and _is_contaminated(found):
        yield _contaminated(found)


def identity_of(result: Mapping[str, Any]) -> tuple[Any, ...]:
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
        f"{found['same_words']} of {found['checked_texts']} references by words; excerpts, other speeds and "
        "paraphrases are not detected"
    )


def notes_of(result: Mapping[str, Any]) -> list[str]:
    """How one benchmark was scored, and what may be compared."""
    benchmark = result["benchmark"]
    own = (result.get("own_code") or {}).get("about")
    notes = [f"rule: {benchmark['rule'] or own or RULES.get(benchmark['metric'], benchmark['metric'])}"]
    if benchmark["comparable"]:
        notes.append(f"comparable: {benchmark['comparable']}")
    official = result.get("official")
    if official and "value" in official:
        left = f"; {official['left_out']} answers skipped" if official.get("left_out") else ""
        notes.append(f"official number {number(official['value'])} ({official['what']}{left})")
    elif official:
        notes += _official_orders(official)
    if result.get("parts"):
        notes.append(", ".join(f"{part} {value:.2f}" for part, value in result["parts"].items()))
    if result.get("suite"):
        notes.append(result["suite"])
    if result.get("strict") is not None:
        notes.append(f"judge {result['judge']}, unread lines as 0: {number(result['strict'])}")
        if result.get("order_agreement_percent") is not None:
            won = f"better than the reference in {result['win_rate_percent']:.2f} % of the items"
            notes[-1] += f"; order agreement {result['order_agreement_percent']:.2f} %; {won}"
    found = result.get("contamination")
    if found is not None and not _is_contaminated(found):
        notes.append(_contaminated(found))
    if result.get("reference_system"):
        reference = result["reference_system"]
        notes.append(f"reference system {number(reference['value'])}, difference {reference['difference']:+.2f}")
    return notes


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
