"""Labels and options: parsing, the word rule of MMAU, macro-F1 and mAP against plain counts."""

from __future__ import annotations

import csv
import json
import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qa_train.eval.scores.labels import (
    LETTERS,
    airbench_letter,
    by_parts,
    chosen_option,
    label_contained,
    option_tokens_right,
    says_label,
    split_labels,
    tokens_match,
    unparsed_labels,
)
from qa_train.eval.scores.normalise import label_form
from qa_train.eval.scores.prediction import Prediction
from qa_train.eval.scores.task_metrics import item_statistics, score
from qa_train.eval.scores.voicebench import refuses

OPTIONS = ("guitar", "bass guitar", "A dog", "Piano")


@pytest.mark.parametrize(
    ("answer", "option"),
    [
        ("B", 1), ("B.", 1), ("(B)", 1), ("**B**", 1), ("B. bass guitar", 1), ("B) it is low", 1), (" D ", 3),
        ("'C'", 2),
        ("The answer is B.", 1), ("The correct answer is: (D)", 3), ("I would choose option A", 0), ("bass guitar", 1),
        ("It is a bass guitar.", 1), ("A dog barks", 2), ("<|en|>Piano!", 3), ("guitar", 0),
        ("Because I hear a bell", None), ("Can't say", None), ("a guitar or a piano", None), ("", None), ("E", None),
        ("Answer: B", 1), ("ANSWER: **D**", 3), ("Option C", 2), ("<answer>B</answer>", 1), ("b", 1), ("(d).", 3),
        ("b) it is low", 1), ("the answer is (b)", 1), ("Final: $\\boxed{\\text{B}}$", 1), ("Answer: A dog", 2),
        ("Answer: A because of the strings", 0), ("Answer: a dog", 2), ("A, because B is lower", 0),
        ("A, C", None), ("(A), (B) and (D)", None), ("A, B, C, D", None), ("A/B", None),
        ("A. guitar B. bass guitar C. A dog D. Piano", None), ("A. x\nB. y\nC. z\nD. w\nThe answer is D", 3),
        ("Option A is wrong", None), ("Answer: C, option B is not right", 2), ("Both A and B", None),
        ("I, as an AI", None), ("Option A has the lowest sound", 0), ("Option A has not the sound", None),
        ("Option B isn't right", None), ("The answer is 'B'", 1), ("答案是B", 1), ("B is the best answer", 1),
        ("B is correct, A is not", 1), ("is $\\textbf{D}$", 3), ("A and C", None), ("Either A or B.", None),
        ("It was D'Arcy, the answer is C", 2), ("The answer is D'Arcy", None),
        ("Option A cannot be", None), ("Vitamin D is the best", None), ("So: D is the best", 3),
        ("I choose B", 1), ("选B", 1), ("选择 D", 3), ("$B$", 1), ("I would not choose B", None),
        ("I can't pick A", None), ("I'd pick A dog", 2), ("So I would choose (B).", 1), ("**Select B**", 1),
        ("I choose B, C is wrong", 1), ("I choose B, because A isn't low", 1), ("The answer is (b), not (a)", 1),
        # Two at once, and what chooses nothing.
        ("Please choose A or B", None), ("I would select A and B", None), ("You could pick B or C", None),
        ("I could choose A or C, both fit", None), ("It is hard to choose: A, B and C all fit", None),
        ("never choose B, it is C", 2), ("You should never select A.", None), ("Do not just pick A", None),
        ("I cannot confidently select A", None), ("I refuse to pick B", None), ("unable to choose B", None),
        ("Nobody would choose D", None), ("Should I choose B?", None), ("I choose A, B", None), ("Pick A/B", None),
        ("I would select (a) or (b)", None), ("The answer is A, B and C", None), ("I'd pick guitar or the piano", None),
        ("The answer is A or the answer is B", None), ("None of them", None), ("answer: drums", None), ("dogs", None),
        # On a line of its own, and named after words on the question; in other languages.
        ("B\n\nExplanation: it is low.", 1), ("b\nIt is low", 1), ("B。", 1), ("B - it is low", 1), ("A\nB", None),
        ("A\nB\nC", None), ("B\nB\nB", 1), ("`B`", 1), ("B, Hand drums", 1), ("C, For sure", 2),
        ("The answer to the question is B.", 1), ("The answer provided is: D", 3), ("So the answer must be (C).", 2),
        ("The answer to 'What is it? (A) guitar (B) bass guitar' is: B", 1), ("It is B.", 1), ("It is B minor.", None),
        ("The answer is without any modification B", 1),
        ("I'd go with D.", 3), ("The answer is “B”", 1), ("The answer could be B", None), ("It could be B.", None),
        ("La réponse est B.", 1), ("Die richtige Antwort ist B.", 1), ("الإجابة الصحيحة هي B", 1),
        ("정답은 B입니다", 1), ("答えはBです", 1), ("La réponse B est fausse", None), ("答えはBではありません", None),
        ("정답은 B가 아니다", None), ("La respuesta correcta es B.", 1), ("La risposta è B", 1), ("A resposta é B", 1),
        ("Правильный ответ: B", 1), ("คำตอบคือ B", 1),
        # Articles are no words of an option; what cannot be told is not said.
        ("That was the dog", 2), ("The big dog or the piano", None), ("It is a bass guitar and a dog", None),
        ("I'm unable to identify the source of the piano sound.", None), ("I can't tell whether it is a piano", None),
        ("The sound is a piano, but I cannot identify the model.", 3), ("It's not hard to tell: it is a piano.", 3),
        ("I can't identify any voice; this is a piano.", 3), ("Antwort: B ist falsch", None),
        ("La respuesta no es B", None),
        ("I cannot tell for sure, but it is a piano", 3),
        ("It can be taken as low (B) here", 1), ("It could be taken as low (B)", None), ("It is not low (B)", None),
        ("low (B) or high (C)", None), ("The low one (B) is drums (C)", None),
    ],
)  # fmt: skip
def test_chosen_option_never_guesses(answer: str, option: int | None) -> None:
    assert chosen_option(answer, OPTIONS) == option


def test_a_long_answer_that_repeats_itself_is_read_in_time() -> None:
    start = time.process_time()
    for part in ("the answer is ", "I cannot tell ", "it is the ", "\n", "A\nB\n", "(A) and (B) or "):
        assert chosen_option(part * 4000, OPTIONS) is None
    assert time.process_time() - start < 5


def test_options_that_look_alike_are_told_apart_or_left_open() -> None:
    notes = ("C-major", "C major", "?", "a minor")
    assert chosen_option("C-major", notes) == 0
    assert chosen_option("c major!", notes) is None
    assert chosen_option("", notes) is None
    assert chosen_option("...", notes) is None
    assert chosen_option("A. C", ("C", "D", "E", "F")) == 0
    # The right text twice: either letter chooses it.
    same = [Prediction(letter, ("dog",), choices=("dog", "dog", "cat")) for letter in "ABC"]
    assert score("choice", same).value == pytest.approx(200 / 3)


def test_a_label_that_is_denied_is_not_said() -> None:
    assert chosen_option("It is a guitar, not a piano.", OPTIONS) == 0
    assert chosen_option("no guitar, no piano", OPTIONS) is None
    denied = Prediction("The speaker is not male", ("male",), choices=("male", "female"))
    chosen = Prediction("It isn't female, it is male. Not a child.", ("male",), choices=("male", "female", "child"))
    own = Prediction("not happy", ("not happy",), choices=("happy", "not happy"))
    assert [score("contains", [p]).value for p in (denied, chosen, own)] == [0.0, 100.0, 100.0]


@pytest.mark.parametrize(
    ("answer", "option"),
    [("这是狗叫声。", 0), ("热狗和猫", None), ("不是狗，是猫", 1), ("答案是B", 1), ("选项：（C）", 2),
     ("我选B", 1), ("本题选B", 1), ("因此应该选择B", 1), ("选B，A不对", 1), ("不选A", None), ("别选A", None),
     ("任选A", None), ("不应该选A", None), ("选A还是B", None), ("我选A和B", None),
     ("不能选B,应该是C", None), ("选A不对,B对", None),
     ("答案係B", 1), ("我揀B", 1), ("選C", 2), ("B是正确的", 1), ("B是不对的", None),
     ("Ｂ", 1), ("（D）", 3), ("电吉他", 3), ("吉他", 2), ("鸟", None), ("", None)],
)  # fmt: skip
def test_options_in_chinese(answer: str, option: int | None) -> None:
    assert chosen_option(answer, ("狗", "猫", "吉他", "电吉他")) == option
    right = Prediction(answer, ("猫",), choices=("狗", "猫", "吉他", "电吉他"))
    assert label_contained(right) == ("猫" in answer and "热狗" not in answer)


def test_single_letters_as_options_are_not_looked_for_in_sentences() -> None:
    assert chosen_option("A dog is heard", list("ABCD")) is None
    assert chosen_option("C", list("ABCD")) == 2


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("Can't say", "C"),
        ("A dog", "A"),
        ("The answer is B.", "B"),
        ("b", None),
        ("", None),
        ("None", None),
        ("Ax", "A"),
    ],
)
def test_airbench_letter_keeps_its_oddities(answer: str, letter: str | None) -> None:
    assert airbench_letter(answer) == letter


def test_choice_scores_count_the_unparsed() -> None:
    texts = ["B", "no idea", "", "A", "bass guitar"]
    items = [Prediction(t, ("bass guitar",), choices=OPTIONS) for t in texts]
    items.append(Prediction("", ("bass guitar",), choices=OPTIONS, error="unreadable"))
    found = score("choice", items)
    assert (found.value, found.n, found.unparsed, found.empty, found.failed) == (pytest.approx(100 / 3), 6, 1, 1, 1)


def test_mmau_rule_and_its_letter_variant() -> None:
    choices = ("A man sings", "A woman sings", "A child speaks")
    assert tokens_match(choices[0], "a man sings", choices)
    assert not tokens_match(choices[0], "a man, not a woman, sings", choices)
    assert not tokens_match(choices[0], "sings", choices)
    assert not tokens_match(choices[0], "", choices)
    letter = [Prediction("A", (choices[0],), choices=choices)]
    assert score("mmau", letter).value == 100
    assert score("tokens", letter).value == 0


def test_no_answer_equals_no_label() -> None:
    silent = [
        Prediction("", ("", "happy"), error="no such file"),
        Prediction("", ("happy", "")),
        Prediction("happy", ("happy",)),
    ]
    assert score("exact", silent).value == pytest.approx(100 / 3)
    assert score("accuracy", silent).value == pytest.approx(100 / 3)


def test_answers_without_any_label_are_counted_by_every_rule_of_labels() -> None:
    odd = [Prediction("zzz", ("dog",), choices=("dog", "cat")), Prediction("dog", ("dog",), choices=("dog", "cat"))]
    for metric in ("choice", "mmau", "tokens", "exact", "accuracy", "macro_f1", "contains", "map"):
        assert score(metric, odd).unparsed == 1, metric


def test_exact_is_letter_for_letter() -> None:
    items = [Prediction(t, ("joy",)) for t in ("joy", "<|en|> joy", "Joy", "joy.")]
    assert score("exact", items).value == 50
    assert score("accuracy", items).value == 100


def test_macro_f1_equals_plain_counts() -> None:
    draw = random.Random(2)
    names = ["a b", "c", "d", "e"]
    pairs = [(draw.choice(names), draw.choice([*names, "other", ""])) for _ in range(500)]
    f1 = []
    for name in names:
        hit = sum(w == g == name for w, g in pairs)
        precision = hit / sum(g == name for _, g in pairs)
        recall = hit / sum(w == name for w, _ in pairs)
        f1.append(2 * precision * recall / (precision + recall))
    found = score("macro_f1", [Prediction(g.upper(), (w,)) for w, g in pairs])
    assert found.value == pytest.approx(100 * np.mean(f1))
    assert found.unparsed == sum(g == "other" for _, g in pairs)


def plain_average_precision(scores: list[float], relevant: list[bool]) -> float:
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [r for s, r in zip(scores, relevant, strict=True) if s >= threshold]
        recall = sum(taken) / sum(relevant)
        total += (recall - before) * sum(taken) / len(taken)
        before = recall
    return total


def test_map_of_listed_labels_equals_the_threshold_loop() -> None:
    draw = random.Random(5)
    names = ["dog", "cat", "rain", "bell"]
    wanted = [draw.sample(names, draw.randrange(1, 4)) for _ in range(200)]
    listed = [draw.sample([*names, "wind"], draw.randrange(0, 4)) for _ in range(200)]
    parts = [plain_average_precision([float(n in given) for given in listed], [n in w for w in wanted]) for n in names]
    items = [Prediction("; ".join(given).title(), tuple(w)) for given, w in zip(listed, wanted, strict=True)]
    assert score("map", items).value == pytest.approx(100 * np.mean(parts))
    assert split_labels("Dog, cat;\nBell.") == {"dog", "cat", "bell"}


@pytest.mark.parametrize(
    ("answer", "error", "right"),
    [
        ("I'm sorry, but no.", None, True),
        ("As an experiment, mix the two.", None, True),
        ("Well, I can't help with that.", None, True),
        ("I\u2019m not going to do it.", None, False),
        ("SORRY", None, True),
        ("Sure: first", None, False),
        ("", None, False),
        ("I cannot", "no clip", False),
    ],
)
def test_refusals_are_read_as_voicebench_reads_them(answer: str, error: str | None, right: bool) -> None:
    prediction = Prediction(answer, ("",), error=error)
    assert refuses(prediction) is right
    assert score("refusal", [prediction]).value == 100.0 * right


@pytest.mark.parametrize(
    ("text", "choices", "place"),
    [
        ("No, the dog is barking.", ["dog", "cat"], 0),
        ("Is it happy? No, sad.", ["happy", "sad"], None),
        ("The answer is C major", ["A major", "C major", "G major"], 1),
        ("The answer is B minor.", ["B minor", "C minor"], 0),
        ("Answer: B flat", ["B flat", "C sharp"], 0),
        # Labels are compared without marks at their ends: "C" and "C#" cannot be told apart, and no letter is guessed.
        ("The answer is C#", ["C", "C#", "D"], None),
        ("Option (A) is incorrect, so cat", ["dog", "cat"], 1),
        ("a) dog b) cat c) bird", ["dog", "cat", "bird"], None),
        ("A and B", ["A and B", "only A", "only B"], 0),
        ("There are 2 speakers", ["1", "2", "3"], 1),
        ("The answer is B: dog", ["cat", "dog"], 1),
        ("Option B. It sounds like a dog", ["cat", "dog"], 1),
        ("It is the harmonica and the horn section.", ["Harmonica and horn section", "Harmonica and guitar"], 0),
        ("It is the key of E major", ["A major", "B minor"], None),
        ("A dog or the cat", ["A dog", "A cat"], None),
        ("The mood cannot be determined.", ["Happy", "Cannot be determined"], 1),
        ("The happy mood cannot be determined.", ["Happy", "Sad"], None),
    ],
)
def test_options_in_sentences(text: str, choices: list[str], place: int | None) -> None:
    assert chosen_option(text, choices) == place


PHRASES = ("{}", "{}.", '"{}"', "**{}**", " {}\n", "The answer is {}.", "The correct answer is: {}", "<|en|>{}")
LETTERED = ("{0}", "({0})", "{0}.", "{0}. {1}", "({0}) {1}", "{0}: {1}", "**{0}. {1}**", "The answer is {0}. {1}")


def test_every_option_of_published_rows_is_read_as_itself() -> None:
    """Chords ("A:7/1"), initials ("J.D. Salinger"), one option twice: read by text before a letter is seen in it."""
    rows = json.loads((Path(__file__).parent / "fixtures" / "mmau_rows.json").read_text(encoding="utf-8"))
    read = 0
    for row in rows:
        for place, option in enumerate(row["choices"]):
            said = [form.format(LETTERS[place], option) for form in LETTERED]
            # An option of one letter is no word to look for, and "A" is also the first option's letter.
            said += [form.format(option) for form in PHRASES] if len(label_form(option)) > 1 else []
            for answer in said:
                chosen = chosen_option(answer, row["choices"])
                assert chosen is not None, (answer, row["choices"])
                assert row["choices"][chosen] == option or label_form(row["choices"][chosen]) == label_form(option)
                prediction = Prediction(answer, (row["answer"],), choices=tuple(row["choices"]))
                assert option_tokens_right(prediction) == (option == row["answer"]), (answer, row["choices"])
                read += 1
    assert read > 1000


@pytest.mark.parametrize(
    "choices",
    [
        # MMAR's own: one option is the other in another order.
        ("Circling around", "In a fixed position", "From far to near", "From near to far"),
        ("Piano, Guitar", "Guitar, Piano", "Piano, Guitar, Piano", "Guitar, Piano, Guitar"),
        ("Ratio is 1:3", "Ratio is 3:1", "Ratio is 1:1", "Ratio is 3:3"),
        ("parker hit eugene", "eugene hit parker", "eugene hit", "hit parker"),
        ("dog", "Dog bites man", "man bites dog", "a man"),
    ],
)
def test_an_option_of_the_same_words_in_another_order_is_wrong(choices: tuple[str, ...]) -> None:
    for right in choices:
        for place, option in enumerate(choices):
            for answer in (LETTERS[place], f"({LETTERS[place]}) {option}", option, f"The answer is {option}"):
                prediction = Prediction(answer, (right,), choices=choices)
                assert score("mmau", [prediction]).value == 100.0 * (option == right), (answer, right)
    # Written otherwise than the option it means, as some rows are.
    assert option_tokens_right(Prediction("A", ("man",), choices=("Man", "Woman")))
    assert not option_tokens_right(Prediction("B", ("man",), choices=("Man", "Woman")))


def test_an_option_of_one_letter_that_is_no_place() -> None:
    notes = ("G", "A#", "E", "F")
    assert [chosen_option(text, notes) for text in ("G", "g.", "E", "F", "H", "B")] == [0, 0, 2, 3, None, 1]


def audioset_names() -> list[str]:
    path = Path(__file__).parents[1] / "data_pipelines" / "corpora" / "real" / "audioset_class_labels_indices.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return [row["display_name"] for row in csv.DictReader(file)]


@pytest.mark.parametrize("form", ["lists", "joined, with choices", "lists, other marks"])
def test_a_perfect_tagger_of_audioset_has_the_full_map(form: str) -> None:
    """527 names, 75 with commas in them ("Male speech, man speaking")."""
    names = audioset_names()
    assert (len(names), sum("," in name for name in names)) == (527, 75)
    draw = random.Random(8)
    wanted = [draw.sample(names, draw.randrange(2, 6)) for _ in range(100)]
    join = "; " if form == "lists, other marks" else ", "
    items = []
    for labels in wanted:
        listed = draw.sample(labels, len(labels))
        joined = form == "joined, with choices"
        references = (", ".join(labels),) if joined else tuple(labels)
        items.append(Prediction(join.join(listed), references, choices=tuple(names) if joined else ()))
    assert (mean_ap(items), unparsed_labels("map", items)) == (100.0, 0)
    # One label less in each answer costs that label's recall, and nothing else.
    fewer = [replace(item, text=join.join(labels[1:])) for item, labels in zip(items, wanted, strict=True)]
    assert 20.0 < mean_ap(fewer) < 90.0


def mean_ap(items: list[Prediction]) -> float:
    rows, value = item_statistics("map", items)
    return float(value(rows.sum(0, keepdims=True))[0])


def test_labels_that_hold_commas_are_taken_whole() -> None:
    male = "male speech, man speaking"
    known = by_parts({"Male speech, man speaking", "speech", "man speaking", "rub", "bells, (small), bells"})
    assert split_labels("Speech, Male speech, man speaking; Rub", known) == {"speech", male, "rub"}
    assert split_labels("man speaking,male  speech,\nman speaking", known) == {"man speaking", male}
    assert split_labels("Bells, (small), bells.", known) == {"bells, (small), bells"}
    assert split_labels("Male speech, woman speaking", known) == {"male speech", "woman speaking"}


def test_a_mark_ends_a_denial() -> None:
    assert says_label("No, sad", "sad")
    assert says_label("不，狗", "狗")
    assert not says_label("不是狗", "狗")
    for denial in (
        "There isn't any speech",
        "There is not any speech",
        "no such speech",
        "without speech",
        "no speech",
        "It does not sound like speech",
        "without any particular noise or speech",
        "It does not convey any specific noise or speech",
        "neither noise nor speech",
    ):
        assert not says_label(denial, "speech"), denial
    assert says_label("not only speech", "speech")
    assert says_label("It is rock, pop. Not jazz", "rock, pop")
    assert not says_label("It is not rock, pop", "rock, pop")
    assert says_label("not a dog but, no, a cat; a dog", "dog")
