"""IFEval: does an answer follow the verifiable instructions of its prompt? (arXiv 2311.07911, as VoiceBench uses it.)

An item's references are its instructions, each a JSON text {"id": "length_constraints:number_words", "kwargs": {...}}
with the names of the published data. Strict: the unchanged answer. Loose: any of eight variants, without asterisks and
without its first or last line, is enough. VoiceBench's number is the mean of four shares: of prompts with every
instruction followed and of instructions, strict and loose. An empty answer follows nothing.

Where the published checks draw at random ours do not: langdetect has a fixed seed, and the letter to be counted is the
given one, whichever it is (they draw another one when it is not of a to z).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from qa_train.eval.scores.normalise import without_tags
from qa_train.eval.scores.prediction import Prediction, answer_of

PARTS = ("prompts strictly", "prompts loosely", "instructions strictly", "instructions loosely")
RELATIONS = ("less than", "at least")
Check = Callable[[str, Mapping[str, Any]], bool]


def ifeval_rows(predictions: Sequence[Prediction]) -> np.ndarray:
    """Per item: all followed strictly, all loosely, 1, instructions followed strictly, loosely, their number. [n, 6].

    Raises:
        ValueError: an instruction that is unknown or lacks what it asks for; packages that are missing.
    """
    rows = []
    for prediction in predictions:
        # Unchanged: an empty last line is the one that the loose variant removes.
        answer = without_tags(answer_of(prediction), strip=False)
        orders = [read_instruction(text) for text in prediction.references]
        strict = [follows(answer, *order) for order in orders]
        loose = [any(follows(variant, *order) for variant in loose_variants(answer)) for order in orders]
        rows.append((all(strict), all(loose), 1, sum(strict), sum(loose), len(orders)))
    return np.array(rows, dtype=np.int64)


def ifeval_parts(sums: np.ndarray) -> np.ndarray:
    """[r, 6] sums -> [r, 4] shares in percent, in the order of ``PARTS``."""
    per_prompt = sums[:, :2] / np.maximum(sums[:, 2:3], 1)
    per_instruction = sums[:, 3:5] / np.maximum(sums[:, 5:6], 1)
    return 100.0 * np.concatenate([per_prompt, per_instruction], axis=1)


def ifeval_points(sums: np.ndarray) -> np.ndarray:
    """[r, 6] sums -> [r] VoiceBench's number: the mean of the four shares."""
    return ifeval_parts(sums).mean(1)


def read_instruction(text: str) -> tuple[str, Mapping[str, Any]]:
    """(id, arguments) of an instruction. ValueError: another form, id or argument than there is."""
    try:
        row = json.loads(text)
        name, arguments = str(row["id"]), {k: v for k, v in row["kwargs"].items() if v is not None}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'IFEval instruction {text!r}: expected {{"id": ..., "kwargs": {{...}}}}') from error
    if name not in CHECKS:
        raise ValueError(f"IFEval instruction {name!r} is unknown; known are {', '.join(CHECKS)}")
    missing = [key for key in CHECKS[name][0] if key not in arguments]
    if missing:
        raise ValueError(f"IFEval instruction {name} lacks {' and '.join(missing)}: found {dict(arguments)}")
    for key in CHECKS[name][0]:
        try:
            _check_argument(key, arguments[key])
        except (ValueError, TypeError, re.error) as error:
            raise ValueError(f"IFEval instruction {name}: {key}={arguments[key]!r} cannot be used: {error}") from error
    return name, arguments


def _check_argument(key: str, value: Any) -> None:
    if key.endswith("relation") and value not in RELATIONS:
        raise ValueError(f"expected one of {', '.join(map(repr, RELATIONS))}")
    if key.startswith("num_") or key.endswith("frequency") or key == "nth_paragraph":
        int(value)
    elif key in ("keywords", "forbidden_words"):
        if not isinstance(value, list):
            raise TypeError("expected a list of words")
        for word in value:
            re.compile(word)
    elif key in ("keyword", "section_spliter", "postscript_marker"):
        re.compile(value)
    elif not isinstance(value, str) and not key.endswith("relation"):
        raise TypeError("expected a text")


def loose_variants(answer: str) -> list[str]:
    """The answer, without its first line, its last, both; each also without asterisks."""
    lines = answer.split("\n")
    kept = [answer, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*kept, *(text.replace("*", "") for text in kept)]


def follows(answer: str, name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether one answer follows one instruction; an empty one does not."""
    return bool(answer.strip()) and CHECKS[name][1](answer, arguments)


def _compare(found: int, relation: str, wanted: Any) -> bool:
    return found < int(wanted) if relation == "less than" else found >= int(wanted)


def _all_keywords(answer: str, a: Mapping[str, Any]) -> bool:
    return all(re.search(word, answer, re.I) for word in a["keywords"])


def _no_forbidden(answer: str, a: Mapping[str, Any]) -> bool:
    return not any(re.search(rf"\b{word}\b", answer, re.I) for word in a["forbidden_words"])


def _keyword_count(answer: str, a: Mapping[str, Any]) -> bool:
    return _compare(len(re.findall(a["keyword"].strip(), answer, re.I)), a["relation"], a["frequency"])


def _letter_count(answer: str, a: Mapping[str, Any]) -> bool:
    return _compare(answer.lower().count(a["letter"].lower()), a["let_relation"], a["let_frequency"])


def _sentence_count(answer: str, a: Mapping[str, Any]) -> bool:
    return _compare(len(_sentences(answer)), a["relation"], a["num_sentences"])


def _word_count(answer: str, a: Mapping[str, Any]) -> bool:
    return _compare(len(re.findall(r"\w+", answer)), a["relation"], a["num_words"])


def _parts_between(text: str, mark: str) -> list[str] | None:
    """What ``mark`` parts, without an empty start or end; None: an empty part in between."""
    parts = re.split(mark, text)
    inner = [p for i, p in enumerate(parts) if p.strip() or 0 < i < len(parts) - 1]
    return None if any(not p.strip() for p in inner) else inner


def _paragraph_count(answer: str, a: Mapping[str, Any]) -> bool:
    parts = _parts_between(answer, r"\s?\*\*\*\s?")
    return parts is not None and len(parts) == int(a["num_paragraphs"])


def _nth_paragraph(answer: str, a: Mapping[str, Any]) -> bool:
    """The number of paragraphs, and the first word of one. Empty ones keep their place but are not counted."""
    paragraphs = re.split(r"\n\n", answer)
    count, place = sum(bool(p.strip()) for p in paragraphs), int(a["nth_paragraph"])
    if place > count or not paragraphs[place - 1].strip():
        return False
    word = paragraphs[place - 1].split()[0].lstrip("'").lstrip('"')
    first = re.split(r"[.,?!'\"]", word)[0].lower()
    return count == int(a["num_paragraphs"]) and first == a["first_word"].lower()


def _postscript(answer: str, a: Mapping[str, Any]) -> bool:
    marker = a["postscript_marker"].strip()
    known = {"P.P.S": r"\s*p\.\s?p\.\s?s.*$", "P.S.": r"\s*p\.\s?s\..*$"}
    return bool(re.findall(known.get(marker, rf"\s*{marker.lower()}.*$"), answer.lower(), re.M))


def _bullets(answer: str, a: Mapping[str, Any]) -> bool:
    stars, dashes = re.findall(r"^\s*\*[^\*].*$", answer, re.M), re.findall(r"^\s*-.*$", answer, re.M)
    return len(stars) + len(dashes) == int(a["num_bullets"])


def _constrained(answer: str, a: Mapping[str, Any]) -> bool:
    return any(option in answer for option in ("My answer is yes.", "My answer is no.", "My answer is maybe."))


def _highlights(answer: str, a: Mapping[str, Any]) -> bool:
    """Both patterns count, so that **this** is one by the second, and what lies between two stars by the first."""
    single = sum(bool(part.strip("*").strip()) for part in re.findall(r"\*[^\n\*]*\*", answer))
    double = sum(bool(part[2:-2].strip()) for part in re.findall(r"\*\*[^\n\*]*\*\*", answer))
    return single + double >= int(a["num_highlights"])


def _sections(answer: str, a: Mapping[str, Any]) -> bool:
    return len(re.split(rf"\s?{a['section_spliter'].strip()}\s?\d+\s?", answer)) - 1 >= int(a["num_sections"])


def _is_json(answer: str, a: Mapping[str, Any]) -> bool:
    text = answer.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        # A model that repeats a bracket endlessly must not end the scoring.
        return False
    return True


def _title(answer: str, a: Mapping[str, Any]) -> bool:
    return any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", answer))


def _two_answers(answer: str, a: Mapping[str, Any]) -> bool:
    parts = _parts_between(answer, r"\*{6}")
    return parts is not None and len(parts) == 2 and parts[0].strip() != parts[1].strip()


def _capital_words(answer: str, a: Mapping[str, Any]) -> bool:
    try:
        from nltk.tokenize import NLTKWordTokenizer
    except ImportError as error:
        raise _missing("counting words in capitals") from error
    words = [word for sentence in _sentences(answer) for word in NLTKWordTokenizer().tokenize(sentence)]
    return _compare(sum(word.isupper() for word in words), a["capital_relation"], a["capital_frequency"])


def _quoted(answer: str, a: Mapping[str, Any]) -> bool:
    text = answer.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _ends_with(answer: str, a: Mapping[str, Any]) -> bool:
    return answer.strip().strip('"').lower().endswith(a["end_phrase"].strip().lower())


# Of each instruction: the arguments it needs, and its check.
CHECKS: dict[str, tuple[tuple[str, ...], Check]] = {
    "keywords:existence": (("keywords",), _all_keywords),
    "keywords:frequency": (("keyword", "frequency", "relation"), _keyword_count),
    "keywords:forbidden_words": (("forbidden_words",), _no_forbidden),
    "keywords:letter_frequency": (("letter", "let_frequency", "let_relation"), _letter_count),
    "language:response_language": (("language",), lambda answer, a: _language(answer, a["language"])),
    "length_constraints:number_sentences": (("num_sentences", "relation"), _sentence_count),
    "length_constraints:number_paragraphs": (("num_paragraphs",), _paragraph_count),
    "length_constraints:number_words": (("num_words", "relation"), _word_count),
    "length_constraints:nth_paragraph_first_word": (("num_paragraphs", "nth_paragraph", "first_word"), _nth_paragraph),
    "detectable_content:number_placeholders": (
        ("num_placeholders",),
        lambda answer, a: len(re.findall(r"\[.*?\]", answer)) >= int(a["num_placeholders"]),
    ),
    "detectable_content:postscript": (("postscript_marker",), _postscript),
    "detectable_format:number_bullet_lists": (("num_bullets",), _bullets),
    "detectable_format:constrained_response": ((), _constrained),
    "detectable_format:number_highlighted_sections": (("num_highlights",), _highlights),
    "detectable_format:multiple_sections": (("section_spliter", "num_sections"), _sections),
    "detectable_format:json_format": ((), _is_json),
    "detectable_format:title": ((), _title),
    "combination:two_responses": ((), _two_answers),
    "combination:repeat_prompt": (
        ("prompt_to_repeat",),
        lambda answer, a: answer.strip().lower().startswith(a["prompt_to_repeat"].strip().lower()),
    ),
    "startend:end_checker": (("end_phrase",), _ends_with),
    "startend:quotation": ((), _quoted),
    "change_case:capital_word_frequency": (("capital_frequency", "capital_relation"), _capital_words),
    "change_case:english_capital": ((), lambda answer, a: answer.isupper() and _language(answer, "en")),
    "change_case:english_lowercase": ((), lambda answer, a: answer.islower() and _language(answer, "en")),
    "punctuation:no_comma": ((), lambda answer, a: "," not in answer),
}


def _sentences(text: str) -> list[str]:
    return [str(sentence) for sentence in _splitter().tokenize(text)]


@lru_cache(maxsize=1)
def _splitter() -> Any:
    """nltk's Punkt with the English parameters that it would download, from a package that holds them as literals.

    That package can split by itself, but not quite alike: for nltk "What?!" at the end is two sentences.
    """
    try:
        from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
        from punkt.data import english
    except ImportError as error:
        raise _missing("counting sentences") from error
    parameters = PunktParameters()
    parameters.abbrev_types = set(english.ABBREV_TYPES)
    parameters.collocations = set(english.COLLOCATIONS)
    parameters.sent_starters = set(english.SENT_STARTERS)
    parameters.ortho_context.update(english.ORTHO_CONTEXT)
    return PunktSentenceTokenizer(parameters)


@lru_cache(maxsize=1)
def _detector() -> Any:
    try:
        import langdetect
    except ImportError as error:
        raise _missing("telling languages apart") from error
    # It draws at random otherwise, and short texts then change their language between runs.
    langdetect.DetectorFactory.seed = 0
    return langdetect


def _language(text: str, wanted: str) -> bool:
    """Whether langdetect finds the language; a text without letters passes, as in the published script."""
    detector = _detector()
    try:
        found = detector.detect(text)
    except detector.LangDetectException:
        return True
    # zh-cn and zh-tw are zh, which the published script does not know.
    return bool(found == wanted or found.startswith(f"{wanted}-"))


def _missing(what: str) -> ValueError:
    return ValueError(f"IFEval: {what} needs more packages: pip install 'qa-train[ifeval]'")
