"""Benchmarks of reasoning: their readers on tiny copies of the published layouts, and their rules.

The texts are made; ``docs/lab/scoring.md`` has what the readers found in the published files.
"""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qa_train.eval.benchmarks import muchomusic
from qa_train.eval.benchmarks.benchmark import Benchmark
from qa_train.eval.benchmarks.layouts import read_rows
from qa_train.eval.benchmarks.table import find_benchmarks
from qa_train.eval.predict import question_of
from qa_train.eval.scores.prediction import Prediction
from qa_train.eval.scores.voicebench import bbh_answer, concluded_number, concluded_valid
from qa_train.eval.scoring import score_rows

FIXTURES = Path(__file__).parent / "fixtures"

# A track's metadata.json, as in the repository: a space before an answer occurs there.
ANIMAL = {
    "data/Animal/audio/dog1.wav": {
        "attribute_label": "dog",
        "single_instruction": "Which animal is it? (a) cow (b) dog (c) hen (d) frog",
        "single_answer": "(b) dog",
        "multi_instruction": "What does the animal in the sound have? (a) Feathers (b) Gills (c) Fur (d) Horns (long)",
        "multi_answer": " (c) Fur",
    }
}
GENDER = {
    "data/Gender/audio/s1.wav": {
        "attribute_label": "female",
        "single_instruction": "Is the speaker (a) male (b) female",
        "single_answer": "(b) female",
        "multi_instruction": "Who has the speaker's gender? (a) Queen Victoria (b) Albert",
        "multi_answer": "(a) Queen Victoria",
    }
}


def only(name: str) -> Benchmark:
    (found,) = find_benchmarks([name])
    return found


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def sakura(root: Path) -> None:
    write(root / "SAKURA/data/Animal/metadata.json", ANIMAL)
    write(root / "SAKURA/data/Gender/metadata.json", GENDER)


def test_sakura_asks_about_every_clip_twice(tmp_path: Path) -> None:
    sakura(tmp_path)
    heard, follows = (read_rows(only(f"sakura_{hop}"), tmp_path) for hop in ("single", "multi"))
    assert [(row["id"], row["gt"], row["group"]) for row in heard] == [
        ("Animal/dog1.wav", "dog", "Animal"), ("Gender/s1.wav", "female", "Gender"),
    ]  # fmt: skip
    assert [row["gt"] for row in follows] == ["Fur", "Queen Victoria"]
    assert follows[0]["choices"] == ["Feathers", "Gills", "Fur", "Horns (long)"]
    assert follows[0]["prompt"] == ANIMAL["data/Animal/audio/dog1.wav"]["multi_instruction"]
    assert heard[1]["audio"] == str(tmp_path / "SAKURA/data/Gender/audio/s1.wav")
    question = question_of(only("sakura_multi"), follows[1])
    assert (question.references, question.sample.template) == (("Queen Victoria",), "chat")


def test_an_answer_that_is_no_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no .*SAKURA/data; set data_root="):
        read_rows(only("sakura_single"), tmp_path)
    wrong = ANIMAL["data/Animal/audio/dog1.wav"] | {"single_answer": "(e) cat"}
    write(tmp_path / "SAKURA/data/Animal/metadata.json", {"data/Animal/audio/dog1.wav": wrong})
    with pytest.raises(ValueError, match=r"dog1\.wav: the answer '\(e\) cat' is none of the options"):
        read_rows(only("sakura_multi"), tmp_path)


@pytest.mark.parametrize(
    ("answer", "value"),
    [("The animal is a dog.", 100), ("(b)", 100), ("b", 100), ("(B) dog", 100), ("It's option (b) dog.", 100),
     # As the judge of the leaderboard is told: no option, two options, another option.
     ("It is a wolf.", 0), ("A dog and a hen.", 0), ("The animal is a cow.", 0), ("(a) cow", 0),
     # The judge also takes other forms of the word.
     ("That is a doggy.", 0)],
)  # fmt: skip
def test_answers_to_sakura(answer: str, value: float, tmp_path: Path) -> None:
    sakura(tmp_path)
    single = only("sakura_single")
    asked = read_rows(single, tmp_path)[:1]
    result, _ = score_rows(single, [asked[0] | {"prediction": answer, "metric": single.metric}])
    assert result["value"] == value
    assert result["by_group"]["Animal"]["n"] == 1


def test_sakura_has_its_published_size() -> None:
    for name in ("sakura_single", "sakura_multi"):
        benchmark = only(name)
        assert benchmark.items == 4 * 500
        tracks = [numbers["Qwen2-Audio-Instruct"] for numbers in benchmark.group_numbers.values()]
        assert benchmark.numbers["Qwen2-Audio-Instruct"] == pytest.approx(sum(tracks) / 4, abs=0.06)


def fixture(name: str) -> Any:
    return json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))


LISTED = [
    (category, answer)
    for category, answers in {
        "formal_fallacies": ("invalid", "valid"), "navigate": ("No", "Yes"), "object_counting": ("2", "18"),
        "web_of_lies": ("No", "Yes"),
    }.items()
    for answer in 2 * answers
]  # fmt: skip


@pytest.mark.parametrize("windows", [False, True])
def test_big_bench_audio_is_read_as_published(windows: bool, tmp_path: Path) -> None:
    """Rows of the layout of its list, made here; the clip is the question."""
    listed = [
        {"id": 10 * i, "category": category, "official_answer": answer, "file_name": f"data/question_{10 * i}.mp3"}
        for i, (category, answer) in enumerate(LISTED, 1)
    ]
    names = [row["file_name"].replace("/", "\\") if windows else row["file_name"] for row in listed]
    lines = (json.dumps(row | {"file_name": n}) for row, n in zip(listed, names, strict=True))
    write(tmp_path / "big_bench_audio/metadata.jsonl", "\n".join(lines))
    benchmark = only("big_bench_audio")
    rows = read_rows(benchmark, tmp_path)
    assert [row["gt"] for row in rows] == [row["official_answer"] for row in listed]
    assert rows[0]["audio"] == str(tmp_path / "big_bench_audio/data/question_10.mp3")
    assert len(question_of(benchmark, rows[0]).sample.messages[0].content) == 1
    said = [row | {"prediction": f"So the answer is {row['gt']}.", "metric": "bbh"} for row in rows]
    result, _ = score_rows(benchmark, said)
    assert (result["value"], result["unparsed"]) == (100.0, 0)
    assert {task: part["n"] for task, part in result["by_group"].items()} == {
        "formal_fallacies": 4, "navigate": 4, "object_counting": 4, "web_of_lies": 4,
    }  # fmt: skip
    swapped = {"Yes": "No", "No": "Yes", "valid": "invalid", "invalid": "valid"}
    said = [row | {"prediction": f"It is {swapped.get(row['gt'], '77')}"} for row in said]
    assert score_rows(benchmark, said)[0]["value"] == 0.0


def test_an_answer_of_another_kind_is_refused(tmp_path: Path) -> None:
    row = {"id": 1, "category": "hyperbaton", "official_answer": "(A)", "file_name": "data/question_1.mp3"}
    write(tmp_path / "big_bench_audio/metadata.jsonl", json.dumps(row))
    with pytest.raises(
        ValueError, match=r"item 1: the answer is '\(A\)': expected yes, no, valid, invalid or a number"
    ):
        read_rows(only("big_bench_audio"), tmp_path)


def test_answers_to_big_bench_audio_are_read_as_by_a_public_script() -> None:
    rows = fixture("big_bench_audio")
    assert len(rows) == 800
    reference = {"formal_fallacies": "valid", "object_counting": "7"}
    differ = []
    for task, text, theirs in rows:
        ours = bbh_answer(Prediction(text, (reference.get(task, "yes"),)))
        if ours != theirs:
            differ.append(text.lower())
    # It takes the last word: "invalid" of "valid, and not invalid". We read nothing in "not no but yes".
    assert len(differ) == 8
    assert all("and not invalid" in text or ("is not" in text and " but " in text) for text in differ)
    assert sum(theirs is not None for *_, theirs in rows) > 700


@pytest.mark.parametrize(
    ("text", "number"),
    [("7", 7), ("Seven.", 7), ("\\boxed{12}", 12), ("You have 3 apples and 4 pears: 3 + 4 = 7", 7),
     ("The total number of red apples is 7, with 2 of them green", 7), ("a total of twenty-one animals", 21),
     ("The answer to the question is 9. I checked it 2 times.", 9), ("The answer is 1,000.", 1000),
     ("In total, you have 7 fruits: 3 apples, 4 pears.", 7), ("It's 3.5", None), ("the 2nd", None), ("50%", None),
     ("I don't know", None), ("The answer is 5, no, the answer is 6", 6), ("someone, often", None)],
)  # fmt: skip
def test_the_number_that_an_answer_concludes(text: str, number: int | None) -> None:
    assert concluded_number(text) == number


@pytest.mark.parametrize(
    ("text", "valid"),
    [("valid", True), ("The argument is invalid.", False), ("It isn't deductively valid", False),
     ("not invalid", True), ("Is the argument valid or invalid? It is valid.", True),
     ("It may look valid, but it is invalid", False), ("I cannot tell whether it is valid", None),
     ("Invalid. A valid argument would need another premise.", False), ("It does not follow.", None),
     ("The answer is: **invalid**, as a valid one needs more", False), ("validate it", None)],
)  # fmt: skip
def test_whether_an_answer_concludes_that_it_is_valid(text: str, valid: bool | None) -> None:
    assert concluded_valid(text) is valid


# The columns of muchomusic.csv and the clip, genre and answers that its README shows; the rest is made.
MUSIC = {
    "question_id": "7", "question": "What genre is it?", "correct_answer": "Reggae", "distractor_1_answer": "Pop music",
    "distractor_2_answer": "Latin rock", "distractor_3_answer": "Ska", "dataset": "sdd", "dataset_identifier": "415600",
    "genre": "Reggae", "music_knowledge": "[]", "music_reasoning": "['genre and style']",
}  # fmt: skip


def music(root: Path, *rows: dict[str, str]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    with (root / "muchomusic.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*MUSIC])
        writer.writeheader()
        writer.writerows(MUSIC | row for row in rows)


def test_muchomusic_is_asked_as_its_script_asks(tmp_path: Path) -> None:
    folder = tmp_path / "MuChoMusic"
    both = {"music_knowledge": "['melody', 'harmony']", "dataset": "musiccaps", "dataset_identifier": "-x_Y2_30.json"}
    music(folder, {}, {"question_id": "8", **both}, {"question_id": "9", **both, "music_reasoning": ""})
    rows = read_rows(only("muchomusic"), tmp_path)
    assert [row["group"] for row in rows] == ["reasoning", "knowledge and reasoning", "knowledge"]
    assert rows[0]["audio"] == str(folder / "sdd/audio/00/415600.2min.wav")
    assert rows[1]["audio"] == str(folder / "musiccaps/audio/[-x_Y2]-[30-40].wav")
    write(folder / "sdd/audio/00/415600.2min.mp3", "")
    write(folder / "musiccaps/audio/-x_Y2_30.flac", "")
    rows = read_rows(only("muchomusic"), tmp_path)
    assert [Path(row["audio"]).name for row in rows[:2]] == ["415600.2min.mp3", "-x_Y2_30.flac"]
    options = " ".join(f"({x}) {c}" for x, c in zip("ABCD", rows[0]["choices"], strict=True))
    wanted = f"is: A\n Question: What genre is it?\n Options: {options} \n The correct answer is: "
    assert rows[0]["prompt"].endswith(wanted)


def test_the_options_of_muchomusic_are_in_an_order_of_the_seed(tmp_path: Path) -> None:
    music(tmp_path / "MuChoMusic", *({"question_id": f"{i}"} for i in range(80)))
    benchmark = only("muchomusic")
    orders = [row["choices"] for row in read_rows(benchmark, tmp_path)]
    assert {order.index("Reggae") for order in orders} == {0, 1, 2, 3}
    assert orders == [row["choices"] for row in read_rows(benchmark, tmp_path)]
    assert orders != [row["choices"] for row in read_rows(replace(benchmark, shuffle_options=1), tmp_path)]


def test_muchomusics_own_score_is_that_of_its_script() -> None:
    made = fixture("muchomusic")
    assert len(made["rows"]) == 600
    for asked, _, text, place in made["rows"]:
        found = muchomusic.official_option(text, asked)
        assert (-1 if found is None else found) == place, (text, asked)
    rows = [{"choices": asked, "gt": gt, "prediction": text, "metric": "choice"} for asked, gt, text, _ in made["rows"]]
    result, _ = score_rows(only("muchomusic"), rows)
    assert result["official"]["value"] == round(100 * made["accuracy"], 2)
    assert f"reads {100 - made['unanswered'] / 6:.1f} %" in result["official"]["what"]
    # A failed item is no answer, and "Drums" is no D.
    failed, _ = score_rows(only("muchomusic"), [rows[0] | {"prediction": "", "error": "no such file"}])
    assert failed["official"]["value"] == 0.0
    drums = rows[0] | {"choices": ["Flute", "Harp", "Oboe", "Viola"], "gt": "Viola", "prediction": "Drums"}
    result, _ = score_rows(only("muchomusic"), [drums])
    assert (result["value"], result["official"]["value"]) == (0.0, 100.0)
