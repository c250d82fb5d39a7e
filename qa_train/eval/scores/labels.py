"""Answers that are labels: equal to one, naming one, or choosing an option; F1 and mAP over them.

Nothing is ever guessed: an answer in which no label is found is wrong, and counted as unparsed.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from qa_train.eval.scores.normalise import label_form, label_words, strip_tags, without_tags
from qa_train.eval.scores.prediction import Prediction, answer_of

LETTERS = string.ascii_uppercase
_OPEN, _CLOSE = r"[\s*$\"'“‘`(\[]*", r"[\s*$\"'”’`]*"
_LEADING_LETTER = re.compile(rf"^{_OPEN}([A-J]){_CLOSE}(?:[).:,\]。、\n]|\s[–—-]\s|$)")
# A small letter alone or on the first line, or with a bracket after it: "b", "(b)", "b) dog".
_SMALL_LETTER = re.compile(rf"^{_OPEN}([a-j])(?:\).*|{_CLOSE}[.\])]*{_CLOSE}(?:\n.*)?)$", re.S)
# "A, C", "(A), (B) and (D)" or "either A or B" chooses nothing.
_SEVERAL = re.compile(
    rf"^(?:(?i:either|both)\s+)?{_OPEN}([A-J])[\s*)\]]*(?:[,;/&\n、]\s*(?:(?:and|or)\s+)?|\b(?:and|or)\s+){_OPEN}(?!\1)[A-J]"
    r"(?=[\s*)\]]*(?:$|[,;/&.\n]|\b(?:and|or)\b))"
)
_MARKED_LETTER = re.compile(r"(?<![\w'’])([A-J])\**[).:]")
_MARKED_SMALL = re.compile(r"(?<![\w'’])([a-j])\)")
# Set off by a mark or the end of the line: no article and no word.
_LONE_LETTER = re.compile(
    r"(?<![A-Za-z0-9_])(?<!\w['’])([A-J])(?=[\s*\"'”’\\]*(?:[.,:;)\]]|$)|['”’](?!\w)|(?<=[*\"“].)[*\"”])", re.M
)
# "The answer is B", "Option (C)", "<answer>b</answer>"; not "option A is wrong", and "Answer: A dog" names no letter.
# "I choose B" and "选B" decide where a clause begins; "you could pick B", "should I choose B" and "不选B" do not.
_CLAUSE = r"^|[.,:;!?。、\n*\"'>(]\s*"
_IS = r"\s+(?:is|was|(?:would|must|should|will)\s+be)"
# VoiceBench asks for it, and models say it again.
_AS_ASKED = r"without\s+any\s+modification"
_CHOOSE = r"(?:choose|pick|select|say|go\s+(?:with|for))"
_NAMED = (
    # Also "The answer to the question is B", "The answer provided is: B".
    rf"(?:\b(?i:answer|option|choice|correct\s+letter)\b"
    rf"(?i:(?:\s+(?:to|for)(?:\s+[\w-]+){{1,4}}|\s+(?:provided|given|directly|{_AS_ASKED}))?{_IS}"
    rf"(?:\s+(?:(?:the\s+)?letter|{_AS_ASKED}))?)?"
    r"|^[*\"']*(?i:choose|pick|select)\b"
    rf"|(?:{_CLAUSE}|\b(?i:so|thus|hence|therefore|and)\s+)(?i:I(?:['’](?:d|ll)|\s+(?:would|will))?\s+{_CHOOSE})\b"
    r"|答案[是为為係选選应應该該就]*(?:[选選][项項])?|[选選][项項]"
    rf"|(?:{_CLAUSE}|我[会會就要]?|所以|因此|(?<!不)[应應][该該]?|故|就|题|題)[选選揀拣][择擇]?"
    # The answer in other languages: with a verb or a colon, as "la réponse B est fausse" chooses nothing.
    r"|\b(?i:réponse|antwort|respuesta|risposta|resposta|ответ|الإجابة|الجواب)"
    r"(?:\s+(?!(?i:no|non|não|nunca|mai|nicht|не|ليست?)\b)[^\W\d_]+)?"
    r"(?:\s+(?:est|ist|lautet|es|è|é|هي|هو)\b|\s*[:：–—-])|ค(?:\u0e33|\u0e4d\u0e32)ตอบ(?:ที่ถูกต้อง)?คือ|정?답[은:]|(?:答え|正解)[は:]"
    r")[\s:：*\"'“‘`「『>(\[]*"
)
# After a letter, another one of the same choice: "A or C", "A, B and C"; not "B, A is wrong".
_ANOTHER = r"[*\"'(\[]*[A-Ja-j](?!['’]?[A-Za-z0-9_])"
_WITH_ANOTHER = (
    r"[)\]*\"']*\s*(?:"
    rf"[,、]\s*{_ANOTHER}(?=[\s*)\]]*(?:$|[,;/&.、和或]|and\b|or\b))"
    rf"|[,、]?\s*(?:[/&和]|还是|或者?|\b(?:and|or)\b)\s*{_ANOTHER}(?!\s+(?:is|was|has|does|would|can(?:not)?|\w+n['’]t)\b)"
    r")"
)
_NAMED_LETTER = re.compile(
    rf"{_NAMED}([A-J])(?!['’]?[A-Za-z0-9_])"
    rf"(?!{_WITH_ANOTHER}|是?不对|是?错|では(?:な|あり)|じゃな|[이가]\s*아니)"
    # Keys and notes: "C major", "F#".
    r"(?![#♯♭]|[\s-]*(?i:major|minor|flat|sharp)\b)"
    r"(?![)\]*\"']*\s+(?:(?:is|are|has|does|do|would|can)(?:\s+\w+)?\s+(?:wrong|incorrect|not)|cannot|\w+n['’]t)\b)"
    r"(?![)\]*\"']*\s+(?:est|ist|es|è|é)\s+(?:fauss|falsch|incorrect|errat|errad|sbagliat))"
    r"(?!(?<=A)(?<!(?:ption|hoice) A)"
    r"\s+(?!(?:and|as|because|but|for|given|if|in|is|or|since|so|the|which|with)\b)[a-z])"
    # LaTeX, "B is the best answer" and "B because ...".
    r"|\\(?:boxed|text(?:bf)?|math\w+)\{\(?([A-J])[).}]"
    r"|(?:^|[.:,;!?(*\"'\n]\s*)([A-HJ])[)*\"']*\s+(?:is|would\s+be)\s+(?:the\s+)?(?:best|correct|right)\b|^([A-HJ])\s+because\b"
    r"|([A-J])是最?(?:正确|對|对|合适)"
    # "It is B." and "..., is: B" at the end.
    rf"|(?:(?:{_CLAUSE})(?i:it(?:['’]s|{_IS})\s)|\bis:)[\s*\"'“‘(\[]*([A-J])(?=[\s*\"'”’)\].]*$)"
)
# What an answer cannot tell: "I'm unable to identify the source of the bells" names no bells.
_UNKNOWN = re.compile(
    r"\b(?i:(?:un|not )able to|cannot|can['’]t|could(?: not|n['’]t)"
    r"|(?<!\bnot )(?<!n['’]t )(?:impossible|difficult|hard) to)\s+"
    r"(?i:\w+ly\s+)?(?i:identify|determine|tell|say|answer|confirm|know|infer|recogni[sz]e|distinguish|be\s+determined)\b"
)
# Not of "A major" and "A and B".
_ARTICLE = re.compile(
    r"\b(?i:the|an|a(?!\s+(?:major|minor|flat|sharp|and|then|chord|note|string)\b))\s+(?=\w{3})", re.ASCII
)
_BRACKETED = re.compile(r"\(([A-J])\)")
# And where an answer goes on after that.
_TOLD_AGAIN = re.compile(
    r"\b(?i:but|however)\b|[,;]\s*(?=(?i:this|it|that|there|I|my|so|the(?:\s+\w+){1,3}\s+(?:is|are|was|were|seems?|sounds?))\b)"
)
_SENTENCE_END = re.compile(r"(?<=[.!?\n。！？])")
_DOUBT = re.compile(
    r"\b(?i:not|no|never|without|except|unlike|wrong|incorrect|eliminated?|could|may|might|or)\b|n['’]t\b"
)
# Scripts without spaces between words: kana, Han, Hangul.
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
# Before a label: "isn't a dog", "no such dog", "does not sound like a dog", "without a cat or dog"; not "No, a dog": a
# mark between them ends the denial.
_DENIED = (
    r"(?<= )(?:not|no|never|without|neither|nor|\w*n t|cannot)(?: (?:any|such|longer|an?|the|particular|specific|clear"
    r"|be|seem|appear|to|sound|like|come|from|show|convey|express|indicate|contain|have|hear))*"
    r"(?:(?: \w+){1,2} n?or(?: an?| the)?)?"
)
_DENIED_UNSPACED = r"(?:不是|没有|并非|不|没|非|无)"
_WORDS_AND_MARKS = re.compile(r"\w+|[,.;:!?。、]")
_NAMED_SMALL = re.compile(rf"{_NAMED}([a-j])(?!{_WITH_ANOTHER})(?:\)|</|[.\]*]*\s*$)")


def label_matches(prediction: Prediction) -> bool:
    """Whether the answer is one of the accepted labels (``text.label_form`` equality)."""
    answer = label_form(answer_of(prediction))
    return bool(answer) and answer in {label_form(reference) for reference in prediction.references}


def exact_match(prediction: Prediction) -> bool:
    """Whether the answer equals the label exactly, as the released MELD and VocalSound scripts ask."""
    answer = without_tags(answer_of(prediction))
    return bool(answer) and answer in prediction.references


def says_label(text: str, label: str) -> bool:
    """Whether ``text`` holds the words of ``label`` in a row, and not only denied right before ("not a dog").

    A label in Chinese, Japanese or Korean characters is looked for among the characters.
    """
    words = label_words(label)
    marked = _WORDS_AND_MARKS.findall(label_form(text))
    if _UNSPACED.search(label):
        wanted = "".join(words)
        denied = re.findall(_DENIED_UNSPACED + re.escape(wanted), "".join(marked))
        return "".join(label_words(text)).count(wanted) > len(denied)
    if not words:
        return False
    said = re.findall(rf"(?<= ){re.escape(' '.join(words))}(?= )", f" {' '.join(label_words(text))} ")
    # The label's own marks, as in "rock, pop", may stand between its words.
    wanted = r"(?: [,.;:!?。、])* ".join(map(re.escape, words))
    return len(said) > len(re.findall(rf"{_DENIED} {wanted}(?= )", f" {' '.join(marked)} "))


def _within(label: str, other: str) -> bool:
    """Whether an answer with ``other`` also contains ``label``, both of ``label_form``: "guitar", "bass guitar"."""
    return label in other if _UNSPACED.search(label) else f" {label} " in f" {other} "


def label_contained(prediction: Prediction) -> bool:
    """Whether the answer contains an accepted label as whole words, and none of the other choices."""
    text = answer_of(prediction)
    accepted = {label_form(reference) for reference in prediction.references}
    # A choice that is a part of an accepted label ("guitar", "bass guitar") is not a second answer.
    others = [c for c in prediction.choices if not any(_within(label_form(c), label) for label in accepted)]
    return any(says_label(text, label) for label in prediction.references) and not any(
        says_label(text, c) for c in others
    )


def chosen_option(text: str, choices: Sequence[str]) -> int | None:
    """The option (0 is A) that an answer chooses, or None when it does not choose exactly one.

    In this order: an option in full, as the whole answer or named as it ("The answer is C major"); a letter at the
    start followed by a mark or the end of the line ("B", "(B)", "B. dog"); a letter named as the answer ("the answer
    is B", "Option (C)"); the only option with its words in the answer, articles aside; the only letter in brackets;
    where the options are letters alone (they were spoken), the only one that is set off by a mark ("I would go with
    B, because"). An answer that lists several letters or all options chooses none, and what it cannot tell is not said.
    """
    # A line of its own sets a letter off.
    lines = [" ".join(line.split()) for line in without_tags(text).splitlines()]
    as_lines = unicodedata.normalize("NFKC", "\n".join(filter(None, lines)))
    text = strip_tags(text).strip()
    forms = [label_form(choice) for choice in choices]
    if (place := _said_in_full(text, choices, forms)) is not None:
        return place
    found = _letters(as_lines, len(choices))
    if not found and all(len(choice) == 1 for choice in choices):
        found = set(_LONE_LETTER.findall(as_lines))
    if found and (len(found) > 1 or found <= {*LETTERS[: len(choices)]}):
        return LETTERS.index(found.pop()) if len(found) == 1 else None
    if text in choices:
        return choices.index(text)
    # An option of one character that no letter stands for: "G" of four options that are notes.
    if (form := label_form(text)) and forms.count(form) == 1:
        return forms.index(form)
    if found:
        return None
    if not any(map(_UNKNOWN.search, choices)):
        text = _told(text)
    said = _said(text, choices) | _said(_ARTICLE.sub("", text), [_ARTICLE.sub("", choice) for choice in choices])
    if len(said) == 1:
        return said.pop()
    marked = _bracketed(text)
    return LETTERS.index(marked) if marked is not None and marked in LETTERS[: len(choices)] else None


def _said(text: str, choices: Sequence[str]) -> set[int]:
    """The options whose words are in a text; none of a single letter, which is no word to look for."""
    forms = [label_form(choice) for choice in choices]
    wordy = [i for i, form in enumerate(forms) if len(form) > 1 or not form.isalpha() or _UNSPACED.search(form)]
    said = [i for i in wordy if says_label(text, choices[i])]
    # "bass guitar" also contains "guitar": an option inside another found one does not count.
    return {i for i in said if not any(j != i and _within(forms[i], forms[j]) for j in said)}


def _bracketed(text: str) -> str | None:
    """The only letter in brackets of an answer ("It can be seen as safer (A) than a city"), in a plain statement."""
    letters = set(_BRACKETED.findall(text))
    holding = filter(_BRACKETED.search, _SENTENCE_END.split(text))
    return None if len(letters) != 1 or any(map(_DOUBT.search, holding)) else letters.pop()


def _told(text: str) -> str:
    """An answer without what it cannot tell, in each sentence up to a "but" or the next clause."""
    kept = []
    for sentence in _SENTENCE_END.split(text):
        if unknown := _UNKNOWN.search(sentence):
            # Its subject stands before "cannot be determined".
            before = "" if unknown[0].endswith("determined") else sentence[: unknown.start()]
            kept += [before, *_TOLD_AGAIN.split(sentence[unknown.end() :], maxsplit=1)[1:]]
        else:
            kept.append(sentence)
    return " ".join(kept)


def _said_in_full(text: str, choices: Sequence[str], forms: Sequence[str]) -> int | None:
    """The option of more than one character that is the whole answer, or the longest that stands where it is named."""
    if len(text) > 1 and text in choices:
        return choices.index(text)
    # Before any letter is read: "A:7/1." is the option "A:7/1", and "D and A." the option "D and A".
    form = label_form(text)
    if len(form) > 1 and len({choice for choice, other in zip(choices, forms, strict=True) if other == form}) == 1:
        return forms.index(form)
    words = [" ".join(label_words(choice)) for choice in choices]
    # Of an answer that repeats itself, each time only as much as two options.
    window = 4 * max(map(len, choices), default=0) + 100
    for named in re.finditer(_NAMED, text):
        rest = f"{' '.join(label_words(text[named.end() : named.end() + window]))} "
        found = [i for i, form in enumerate(forms) if len(form) > 1 < len(words[i]) and rest.startswith(f"{words[i]} ")]
        if found:
            said = max(found, key=lambda i: len(words[i]))
            others = "|".join(re.escape(other) for other in words if other)
            if not re.match(rf"(?:and|or) (?:(?:an?|the) )?(?:{others}) ", rest[len(words[said]) + 1 :]):
                return said
    return None


def _letters(text: str, options: int) -> set[str]:
    """The letters, as capitals, that an answer sets at its start or names; several: it chooses none of them."""
    if _SEVERAL.match(text):
        return set(LETTERS)
    # Repeated options ("A. dog B. cat") are not a choice of the first one.
    marked = {*_MARKED_LETTER.findall(text)}, {letter.upper() for letter in _MARKED_SMALL.findall(text)}
    listed = options > 1 and any({*LETTERS[:options]} <= each for each in marked)
    if not listed and (found := _LEADING_LETTER.match(text) or _SMALL_LETTER.match(text)):
        return {found.group(1).upper()}
    named = {letter for pair in _NAMED_LETTER.findall(text) for letter in pair if letter}
    return named | {letter.upper() for letter in _NAMED_SMALL.findall(text)}


def gold_option(choices: Sequence[str | None], answer: str) -> int | None:
    """The first option with the text of the right answer; None if there is none."""
    return next((i for i, choice in enumerate(choices) if choice == answer), None)


def choice_right(prediction: Prediction) -> bool:
    """Whether the answer chooses the option with the reference as its text."""
    chosen = chosen_option(answer_of(prediction), prediction.choices)
    return chosen is not None and prediction.choices[chosen] == prediction.references[0]


def airbench_letter(response: str) -> str | None:
    """The letter that AIR-Bench's score_foundation.py reads, oddities included.

    The first character if it is A to D ("Can't say" is C, "A dog barks" is A), else the last but one
    ("The answer is B." is B); None where the script counts a failure.
    """
    text = response.strip().replace("\n", "")
    if text in ("", "None"):
        return None
    for place in (0, -2):
        if len(text) >= abs(place) and text[place] in "ABCD":
            return text[place]
    return None


def tokens_match(answer: str, prediction: str, choices: Sequence[str]) -> bool:
    """MMAU's and MMAR's own rule: every word of the answer is said, and no word of other options only."""

    def words(text: str) -> set[str]:
        return set(re.findall(r"\b\w+\b", text.lower()))

    said, wanted = words(prediction), words(answer)
    wrong = set().union(*(words(choice) for choice in choices)) - wanted
    return bool(said) and wanted <= said and not said & wrong


def tokens_right(prediction: Prediction) -> bool:
    """``tokens_match`` on the unchanged answer: a bare letter never matches."""
    return tokens_match(prediction.references[0], without_tags(answer_of(prediction)), prediction.choices)


def option_text(text: str, choices: Sequence[str]) -> str:
    """The text of the option that an answer chooses; the answer without tags where it chooses none."""
    text = without_tags(text)
    chosen = chosen_option(text, choices)
    return text if chosen is None else choices[chosen]


def option_tokens_right(prediction: Prediction) -> bool:
    """Whether the answer chooses the right option; where it chooses none, ``tokens_match`` on its text.

    A chosen option is compared as such: the word rule takes "From near to far" for "From far to near".
    """
    answer, choices = prediction.references[0], prediction.choices
    text = without_tags(answer_of(prediction))
    chosen = chosen_option(text, choices)
    if chosen is None:
        return tokens_match(answer, text, choices)
    return choices[chosen] in _right_options(answer, choices)


def _right_options(answer: str, choices: Sequence[str]) -> set[str]:
    """The options that are the right answer: as it is written, else by ``label_form``, else by the word rule."""
    tests: tuple[Callable[[str], bool], ...] = (
        lambda choice: choice == answer,
        lambda choice: label_form(choice) == label_form(answer),
        lambda choice: tokens_match(answer, choice, choices),
    )
    return next((found for test in tests if (found := {c for c in choices if test(c)})), set())


def unparsed_labels(metric: str, predictions: Sequence[Prediction]) -> int:
    """How many answers (empty and failed ones aside) name no label or option of their question."""
    labels = {label_form(r) for r in {r for p in predictions for r in (*p.references, *p.choices)}}
    known = _label_sets(predictions)[1] if metric == "map" else {}
    tests: dict[str, Callable[[Prediction], bool]] = {
        "choice": lambda p: chosen_option(answer_of(p), p.choices) is None,
        "mmau": lambda p: chosen_option(answer_of(p), p.choices) is None,
        "tokens": lambda p: not any(tokens_match(c, without_tags(answer_of(p)), p.choices) for c in p.choices),
        "airbench": lambda p: airbench_letter(answer_of(p)) is None,
        "exact": lambda p: label_form(answer_of(p)) not in labels,
        "accuracy": lambda p: label_form(answer_of(p)) not in labels,
        "macro_f1": lambda p: label_form(answer_of(p)) not in labels,
        "map": lambda p: not split_labels(without_tags(answer_of(p)), known) & {*known.values()},
        "contains": lambda p: not any(says_label(answer_of(p), label) for label in (*p.references, *p.choices)),
    }
    test = tests.get(metric)
    given = [p for p in predictions if strip_tags(answer_of(p))]
    return sum(map(test, given)) if test is not None else 0


def airbench_right(prediction: Prediction) -> bool:
    """Whether AIR-Bench's own reading of the answer is the right letter; failures are wrong here."""
    letter = airbench_letter(answer_of(prediction))
    gold = gold_option(prediction.choices, prediction.references[0])
    return letter is not None and gold is not None and letter == LETTERS[gold]


def macro_f1_rows(predictions: Sequence[Prediction]) -> np.ndarray:
    """Per item and class of the references: hit, predicted, actual; int array [n, 3 C]."""
    classes = {label: i for i, label in enumerate(sorted({label_form(p.references[0]) for p in predictions}))}
    rows = np.zeros((len(predictions), len(classes), 3), dtype=np.int64)
    for row, prediction in zip(rows, predictions, strict=True):
        actual, said = classes[label_form(prediction.references[0])], classes.get(label_form(answer_of(prediction)))
        row[actual, 2] = 1
        if said is not None:
            row[said, 1] = 1
            row[said, 0] = said == actual
    return rows.reshape(len(predictions), -1)


def macro_f1_points(sums: np.ndarray) -> np.ndarray:
    """[r, 3 C] summed counts -> [r] mean over the classes present of F1 = 2 hits / (predicted + actual), in percent."""
    hit, said, actual = sums.reshape(len(sums), -1, 3).astype(float).transpose(2, 0, 1)
    f1 = np.where(actual > 0, 2 * hit / np.maximum(said + actual, 1), 0.0)
    return 100 * f1.sum(1) / np.maximum((actual > 0).sum(1), 1)


def split_labels(text: str, known: Mapping[tuple[str, ...], str] | None = None) -> set[str]:
    """The labels of an answer that lists several: parted by commas, semicolons or new lines.

    ``known`` (of ``by_parts``): labels that may hold such marks themselves, as 75 of AudioSet's do ("Male speech, man
    speaking"); the longest one that stands at a place is taken whole.
    """
    parts, of = _parts(text), known or {}
    longest = max(map(len, of), default=1)
    found: set[str] = set()
    while parts:
        size = next((n for n in range(min(longest, len(parts)), 1, -1) if parts[:n] in of), 1)
        found.add(of.get(parts[:size], parts[0]))
        parts = parts[size:]
    return found


def by_parts(labels: Iterable[str]) -> dict[tuple[str, ...], str]:
    """{the parts that its marks make of a label: its ``label_form``}."""
    return {_parts(label): label_form(label) for label in labels}


def _parts(text: str) -> tuple[str, ...]:
    return tuple(form for part in re.split(r"[,;\n]", text) if (form := label_form(part)))


def _label_sets(predictions: Sequence[Prediction]) -> tuple[list[set[str]], dict[tuple[str, ...], str]]:
    """The labels of each item's references, and all labels that are known (``by_parts``).

    A reference that names several known labels at once, as a joined text does, is taken apart; what the choices name is
    known, and without any, every reference that is one label of a list.
    """
    named = {label for p in predictions for label in (*p.choices, *(p.references if len(p.references) > 1 else ()))}
    listed = by_parts(named)
    forms = set(listed.values())
    wanted = []
    for prediction in predictions:
        labels: set[str] = set()
        for form in map(label_form, prediction.references):
            parts = {form} if form in forms else split_labels(form, listed)
            labels |= parts if parts <= forms else {form}
        wanted.append(labels)
    return wanted, listed | by_parts(set().union(*wanted) - forms)


def map_rows(predictions: Sequence[Prediction]) -> np.ndarray:
    """Per item and class: hit, listed, relevant; and a one for the item. int array [n, 3 C + 1]."""
    wanted, known = _label_sets(predictions)
    classes = sorted(set().union(*wanted))
    rows = np.zeros((len(predictions), 3 * len(classes) + 1), dtype=np.int64)
    rows[:, -1] = 1
    for row, prediction, relevant in zip(rows, predictions, wanted, strict=True):
        listed = split_labels(without_tags(answer_of(prediction)), known)
        for i, name in enumerate(classes):
            row[3 * i : 3 * i + 3] = name in listed and name in relevant, name in listed, name in relevant
    return rows


def map_points(sums: np.ndarray) -> np.ndarray:
    """[r, 3 C + 1] -> [r] mean average precision in percent of answers that list labels (score 1) or not (0).

    With two levels of score, a class's precision-recall steps are two: the listed items, then all.
    """
    n = sums[:, -1:].astype(float)
    hit, listed, relevant = sums[:, :-1].reshape(len(sums), -1, 3).astype(float).transpose(2, 0, 1)
    recall = hit / np.maximum(relevant, 1)
    ap = recall * hit / np.maximum(listed, 1) + (1 - recall) * relevant / n
    return 100 * np.where(relevant > 0, ap, 0).sum(1) / np.maximum((relevant > 0).sum(1), 1)
