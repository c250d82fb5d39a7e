"""The report of an evaluation: our numbers next to the published ones, what may be compared, what went wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from qa_train.data.audio.waveform import BadAudio
from qa_train.report.data_uri import MAX_SECONDS, data_uri
from qa_train.report.markdown import plain
from qa_train.report.style import STYLE

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
    "bleu": "sacrebleu corpus BLEU, tokenised by the language of the reference (zh, ja-mecab, else 13a)",
    "chrf": "sacrebleu corpus chrF",
    "accuracy": "the answer is the label, whatever case and marks",
    "exact": "the answer is the label letter for letter",
    "contains": "the answer contains the label and no other choice",
    "choice": "the chosen option by letter or text; an answer that chooses none is wrong",
    "refusal": "the answer holds one of VoiceBench's phrases of refusal, in any letter case",
    "bbh": "yes, no, (A) or (B) as stated in the answer; an answer with none is wrong",
    "ifeval": "mean of the shares of prompts and of instructions followed, strictly and loosely",
    "macro_f1": "mean of the labels' F1",
    "map": "mean average precision of the labels that are listed",
    "cider": "CIDEr-D x 100 (pycocoevalcap, PTB tokens)",
    "rouge_l": "ROUGE-L x 100 (pycocoevalcap, PTB tokens)",
    "meteor": "METEOR 1.5 x 100 of the summed statistics (pycocoevalcap, PTB tokens)",
}
COUNTS = ("empty", "unparsed", "failed", "truncated", "judge_failed", "judge_refused", "judge_unread")

_MORE = """
h3 { font-size: 1rem; margin: 0 0 10px; } thead th.num { text-align: right; }
.scroll { overflow-x: auto; } .scroll td:not(.num) { min-width: 120px; }
.breakdowns { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(420px, 100%), 1fr)); gap: 26px 36px; }
.prompt, article dd { white-space: pre-line; } .breakdowns { grid-auto-flow: dense; }
.breakdowns .wide { grid-column: 1 / -1; } td.bad, .doubts { color: var(--bad); } ul + h3 { margin-top: 14px; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; }
@media (max-width: 720px) { .scroll td:not(.num) { min-width: 0; } .num { white-space: normal; } }
"""

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


def _cell(label: str, text: str, kind: str = "") -> str:
    """A cell that shows its column's name where the page is narrow."""
    return f'<td data-label="{escape(label, quote=True)}" class="{kind}"><span>{escape(text)}</span></td>'


def _heads(first: str, *others: tuple[str, str]) -> str:
    cells = "".join(f'<th scope="col" class="{kind}">{escape(name)}</th>' for name, kind in others)
    return f'<thead><tr><th scope="col">{escape(first)}</th>{cells}</tr></thead>'


def _table(results: Results) -> str:
    published = _published(results)
    rows = []
    for name, result in results.items():
        benchmark = result["benchmark"]
        title = escape(benchmark["title"] or name)
        direction = "lower is better" if result.get("lower_is_better") else "higher is better"
        rows.append(
            f'<tr><th scope="row">{title}<small>{escape(benchmark["metric"])}, {direction}</small></th>'
            + _cell("ours", _ours(result), "num")
            + "".join(_cell(name, cell(benchmark), _KINDS.get(name, "num")) for name, cell in published.items())
            + _cell("n", str(result["n"]), "num")
            + _cell("odd answers", _counts(result))
            + _cell("probe", listening(result), "bad" if (result.get("probe") or {}).get("listens") is False else "")
            + "</tr>"
        )
    names = ("ours", *published, "n", "odd answers", "probe")
    head = _heads("benchmark", *((name, _KINDS.get(name, "num")) for name in names))
    return f'<div class="scroll"><table>{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _breakdowns(results: Results) -> str:
    tables = []
    for name, result in results.items():
        published = result["benchmark"]["group_numbers"]
        for title, classes in _parts(result).items():
            others = {k: ", ".join(f"{s} {x}" for s, x in published.get(k, {}).items()) for k in classes}
            compared = any(others.values())
            rows = "".join(
                f'<tr><th scope="row">{escape(k)}</th>{_cell("ours", _ours(v), "num")}'
                + _cell("n", str(v.get("n", "")), "num")
                + (_cell("published", others[k] or "–") if compared else "")
                + "</tr>"
                for k, v in classes.items()
            )
            head = _heads(title, ("ours", "num"), ("n", "num"), *([("published", "")] if compared else []))
            wide = ' class="wide"' if compared else ""
            tables.append(
                f"<div{wide}><h3>{escape(result['benchmark']['title'] or name)}, by {escape(title)}</h3>"
                f"<table>{head}<tbody>{rows}</tbody></table></div>"
            )
    return f'<div class="breakdowns">{"".join(tables)}</div>' if tables else ""


def _scored(results: Results) -> str:
    """The notes of each benchmark under its title."""
    parts = []
    for name, result in results.items():
        items = "".join(f"<li>{escape(note.removeprefix(f'{name}: '))}</li>" for note in _notes(name, result))
        parts.append(f"<h3>{escape(result['benchmark']['title'] or name)}</h3><ul>{items}</ul>")
    return "".join(parts)


def _player(root: str, audio: str, below: Path | None) -> str:
    try:
        path = Path(root) / audio
        if below is not None and not path.resolve().is_relative_to(below.resolve()):
            name = escape(path.name)
            return f'<p class="note">no player: {name} does not lie below data_root={escape(str(below))}</p>'
        uri, cut = data_uri(path)
    except (BadAudio, OSError, ValueError, RuntimeError) as error:
        return f'<p class="note">no player: {escape(str(error))}</p>'
    note = f'<p class="note">first {MAX_SECONDS:.0f} s of the clip</p>' if cut else ""
    return f'<audio controls preload="none" src="{uri}"></audio>{note}'


def _worst(results: Results, below: Path | None) -> str:
    cards: list[str] = []
    # Clips are inside the page: each benchmark has its share of them.
    share = max(1, MAX_PLAYERS // max(1, sum(bool(result.get("worst")) for result in results.values())))
    for name, result in results.items():
        title = escape(result["benchmark"]["title"] or name)
        for number, item in enumerate(result.get("worst") or []):
            player = ""
            if item.get("audio"):
                more = f'<p class="note">no player, the page holds {share} a benchmark: {escape(item["audio"])}</p>'
                player = _player(result.get("data_root", ""), item["audio"], below) if number < share else more
            wanted = item["gt"] if isinstance(item["gt"], str) else " / ".join(item["gt"])
            judge = "".join(f"<dt>judge</dt><dd>{escape(words)}</dd>" for words in item.get("judge") or [])
            said = f"<dt>said</dt><dd>{escape(item['prediction']) or '<i>(empty answer)</i>'}</dd>"
            if item.get("error"):
                said = f"<dt>no answer</dt><dd>{escape(item['error'])}</dd>"
            cards.append(
                f'<article><header><span class="task">{title} · {escape(str(item["id"]))}</span></header>'
                f"{player}"
                f'<p class="prompt">{escape(item.get("prompt") or item.get("question") or "")}</p>'
                f"<dl><dt>expected</dt><dd>{escape(wanted) or '–'}</dd>{said}{judge}</dl>"
                "</article>"
            )
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _fact(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)


def _sections(parts: Sequence[tuple[str, str]]) -> str:
    return "".join(f"<section><h2>{escape(title)}</h2>{body}</section>" for title, body in parts if body)


def render_benchmarks(results: Results, title: str = "Evaluation", below: Path | None = None) -> str:
    """The whole page, self-contained; clips of the worst cases are read from the data root and embedded.

    ``below``: only clips that lie in this folder, wherever links lead, for results that somebody else may have made.
    """
    warnings = "".join(f"<li>{escape(note)}</li>" for note in _warnings(results))
    first = next(iter(results.values()), {})
    facts = {"answered by": first.get("answered_by", ""), **first.get("identity", {})}
    facts = {k: v for k, v in facts.items() if k not in ("benchmark", "rows")}
    if len({_model(result) for result in results.values()}) > 1:
        facts = {"answered by": "several models: see above"}
    model = "".join(f"<dt>{escape(k)}</dt><dd>{escape(_fact(v))}</dd>" for k, v in facts.items())
    body = _sections(
        [
            ("Results", _table(results)),
            ("Before believing these numbers", f'<ul class="doubts">{warnings}</ul>' if warnings else ""),
            ("What is comparable, and how it was scored", _scored(results)),
            ("Breakdowns", _breakdowns(results)),
            ("Worst cases", _worst(results, below)),
            ("Model", f'<dl class="facts">{model}</dl>'),
        ]
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{_MORE}</style></head><body><main>"
        f"<header class='top'><h1>{escape(title)}</h1><p>Figures in brackets are 95 % intervals (–: one "
        f"item, or all are alike). Empty, unparsed, cut-short and failed answers are in every denominator; what a "
        f"judge did not rate is counted, but not in its mean.</p></header>{body}</main></body></html>\n"
    )
