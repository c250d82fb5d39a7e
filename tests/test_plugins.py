"""Metrics, rewards, corpora and tasks of the user's own: found by name, run only where the command line names them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml

from data_pipelines.importers import ImportConfig
from data_pipelines.importers import main as import_main
from data_pipelines.importing.catalogue import corpus_of, table
from qa_train.config import EvalConfig, compose_stage, parse_options
from qa_train.data.shards.index import load_index
from qa_train.data.text.prompts import PromptBank
from qa_train.data.text.sample import AudioPart, Message, Sample, TextPart
from qa_train.eval.compare import compare_predictions
from qa_train.eval.questions import Question, read_questions
from qa_train.eval.scores.prediction import Prediction
from qa_train.eval.scores.task_metrics import is_metric, item_statistics, lower_is_better, score
from qa_train.eval.suite import evaluate
from qa_train.preferences.rank import ByMetric
from qa_train.utils import plugins
from tests.train.conftest import environment, run, shards  # noqa: F401

METRICS = '''
"""Metrics about birds."""
from qa_train.eval.scores.task_metrics import item_statistics

def names_a_bird(predictions):
    return [100.0 * ("bird" in p.text) for p in predictions]

def letters_off(predictions):
    return [abs(len(p.text) - len(p.references[0])) for p in predictions]
letters_off.lower_is_better = True

def corpus_wer(predictions):
    return item_statistics("wer", predictions)

def short(predictions):
    return [max(0, 100 - len(p.text)) for p in predictions]
short.without_reference = True

def two(answers, references): return []
def nan(predictions): return [float("nan") if p.text == "b" else 1.0 for p in predictions]
def few(predictions): return [1.0]
def words(predictions): return ["good"] * len(predictions)
def broken(predictions): return [p.txt for p in predictions]
def infinite(predictions): return [[1.0, 0.0]] * len(predictions), lambda sums: sums[:, 0] / sums[:, 1]
number = 3
'''
CORPORA = '''
"""A list of birds."""
from data_pipelines.corpora.base import Corpus, Item

def read(request):
    for row in request.tree.table("birds.csv", needs=["file", "bird"]):
        yield Item(row["file"], (request.tree.recording(row["file"]),), {"label": row["bird"]})

BIRDS = Corpus("birds", "Birds of the garden", "own", "", {"train": "train"}, read, gives=("label",))
'''
ENTRIES = (
    "[qa_train.metrics]\nbird = bird_words.metrics:names_a_bird\n[qa_train.corpora]\nbirds = bird_words.corpora:BIRDS\n"
)
TASKS = {"bird": {"target": "{label}", "prompts": {"en": ["Which bird is it?"]}}}


@pytest.fixture(autouse=True)
def nothing_allowed() -> Iterator[None]:
    plugins.forget()
    yield
    plugins.forget()
    for name in [name for name in sys.modules if name.split(".")[0] in ("bird_words", "my_score")]:
        del sys.modules[name]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package bird_words, installed as pip does it, with entry points."""
    site = tmp_path / "site"
    (site / "bird_words").mkdir(parents=True)
    (site / "bird_words/__init__.py").write_text("")
    (site / "bird_words/metrics.py").write_text(METRICS)
    (site / "bird_words/corpora.py").write_text(CORPORA)
    (site / "bird_words/tasks.yaml").write_text(yaml.safe_dump(TASKS))
    info = site / "bird_words-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bird-words\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(site)
    return site


def said(*texts: str, reference: str = "a bird sings") -> list[Prediction]:
    return [Prediction(text, (reference,), "en") for text in texts]


def imported() -> bool:
    return any(name.split(".")[0] == "bird_words" for name in sys.modules)


@pytest.mark.parametrize("name", ["bird", "bird_words.metrics:names_a_bird"])
def test_a_metric_runs_only_where_its_package_is_named(
    name: str, installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"code from outside qa-train.*add plugins=\[bird_words\]"):
        is_metric(name)
    assert not imported()
    plugins.allow(["bird_words"])
    assert f"own code that may run: bird_words ({installed}/bird_words/__init__.py)" in capsys.readouterr().out
    assert not imported()
    found = score(name, said("a bird", "a dog"))
    assert (found.metric, found.value, found.n) == (name, 50.0, 2)


def test_a_module_may_be_named_and_its_neighbour_stays_out(installed: Path) -> None:
    plugins.allow(["bird_words.metrics"])
    assert is_metric("bird")
    with pytest.raises(ValueError, match="runs only if the command line names its package"):
        corpus_of("birds")
    # A name that begins alike is another package.
    with pytest.raises(ValueError, match=r"add plugins=\[bird_words_too\]"):
        is_metric("bird_words_too:f")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bird_words.metrics:two", r"takes \(answers, references\): expected a function of \(predictions\)"),
        ("bird_words.metrics:number", r"is int 3: expected a function of \(predictions\)"),
        ("bird_words.metrics:birdy", "has no attribute 'birdy'; bird_words.metrics has .*names_a_bird"),
        ("bird_words.metricz:f", "importing bird_words.metricz failed: No module named"),
        ("bird_words.metrics:nan", r"gave nan for item 2 of 2 \(1 such items\)"),
        ("bird_words.metrics:few", r"returned \[1.0\]: expected one number for each of 2 items"),
        ("bird_words.metrics:words", r"returned \['good', 'good'\]: expected one number"),
        ("bird_words.metrics:infinite", "its second result gave inf for item 1"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_is_wrong_with_a_metric_is_said(name: str, message: str, installed: Path) -> None:
    plugins.allow("bird_words")
    with pytest.raises(ValueError, match=message):
        item_statistics(name, said("a", "b"))


def test_an_error_inside_a_metric_keeps_its_trace(installed: Path) -> None:
    plugins.allow("bird_words")
    with pytest.raises(RuntimeError, match=r"bird_words.metrics:broken failed on 1 predictions") as caught:
        item_statistics("bird_words.metrics:broken", said("a"))
    assert isinstance(caught.value.__cause__, AttributeError)


def test_a_name_does_not_reach_through_a_package(installed: Path) -> None:
    plugins.allow("bird_words")
    assert not is_metric("bird_words.metrics:os.system")


def test_a_package_that_is_not_there_and_a_name_taken_twice(installed: Path) -> None:
    with pytest.raises(ValueError, match="there is no package 'no_such_package', installed or in"):
        plugins.allow(["no_such_package"])
    other = installed / "other-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[qa_train.metrics]\nbird = other:f\n")
    with pytest.raises(ValueError, match=r"bird is the name of bird_words.metrics:names_a_bird and of other:f"):
        is_metric("bird")
    # A built-in name is never another one's.
    (other / "entry_points.txt").write_text("[qa_train.metrics]\nwer = other:f\n")
    assert score("wer", said("a bird sings")).value == 0


def test_a_module_of_the_current_folder_is_found_and_the_path_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_score.py").write_text("def f(predictions):\n    return [7.0 for _ in predictions]\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    plugins.allow("my_score")
    assert score("my_score:f", said("a", "b")).value == 7
    assert sys.path == before


def test_own_metrics_get_the_intervals_of_the_built_in_ones(installed: Path) -> None:
    plugins.allow("bird_words")
    answers = said("a bird sings", "a bird", "a dog sings", "no") * 5
    own, built_in = score("bird_words.metrics:corpus_wer", answers), score("wer", answers)
    assert (own.value, own.ci_low, own.ci_high) == (built_in.value, built_in.ci_low, built_in.ci_high)
    # A share gets Wilson's interval: all right is not certain of the next.
    found = score("bird", said(*["bird"] * 10))
    assert (found.value, found.ci_high) == pytest.approx((100.0, 100.0))
    assert 70 < found.ci_low < 75


def test_a_metric_says_which_way_is_better(installed: Path) -> None:
    plugins.allow("bird_words")
    name = "bird_words.metrics:letters_off"
    assert lower_is_better(name)
    assert not lower_is_better("bird")
    far, near = said(*["x"] * 20), said(*["a bird sings"] * 20)
    assert compare_predictions(name, far, near)["better"] == "second"


def test_an_answer_that_failed_is_an_empty_one(installed: Path) -> None:
    plugins.allow("bird_words")
    failed = Prediction("a bird", ("a bird",), "en", error="unreadable clip")
    assert score("bird", [failed, *said("a bird")]).value == 50


def test_a_reward_ranks_answers(installed: Path) -> None:
    sample = Sample("clip", (Message("user", (AudioPart(0), TextPart("What?"))),), 1, "ask", "en", "chat")
    asked = Question(sample, lambda: (), ("a bird sings",), "bird", "test", "en")
    plugins.allow("bird_words")
    best = ByMetric("bird", 1.0).rank([asked, asked, asked], [["a dog", "a bird", ""], ["a dog", "a cat"], []])
    assert best == [("a bird", "a dog"), None, None]
    nearest = ByMetric("bird_words.metrics:letters_off", 1.0).rank([asked], [["a bird sing", "a", "a bird"]])
    assert nearest == [("a bird sing", "a")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A file of two questions by a metric of one's own, and answers to them that anyone may have passed on."""
    for name in ("1.wav", "2.wav"):
        soundfile.write(tmp_path / name, np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    rows = [
        {"audio": f"{i}.wav", "prompt": "Which?", "gt": "bird", "source": "garden", "metric": "bird"} for i in (1, 2)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def words(*given: str) -> Any:
    return parse_options(EvalConfig, list(given), "eval")


def test_files_alone_never_import_anything(installed: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"line 1: bird \(bird_words.metrics:names_a_bird\) is code from outside"):
        read_questions(folder / "data.jsonl")
    (folder / "out/garden").mkdir(parents=True)
    benchmark = {"name": "garden", "metric": "bird_words.metrics:names_a_bird", "reader": "jsonl", "path": "x"}
    run_json = {"benchmark": benchmark, "n": 0, "identity": {}, "answered_by": "", "data_root": ""}
    (folder / "out/garden/run.json").write_text(json.dumps(run_json))
    (folder / "out/garden/predictions.jsonl").write_text("")
    with pytest.raises(ValueError, match="code from outside"):
        evaluate(words(f"out={folder}/out", "step=score"))
    assert not imported()


def test_no_yaml_file_opts_in() -> None:
    with pytest.raises(Exception, match="plugins"):
        compose_stage("pretrain", ["experiment=smoke", "+plugins=[os]"])
    assert plugins.taken_from(["a=1", "plugins=[x,y.z]"]) == (["a=1"], ["x", "y.z"])


def test_a_corpus_is_imported_by_name(installed: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "garden"
    corpus.mkdir()
    rows = ["file,bird"]
    for i, bird in enumerate(("robin", "wren", "robin")):
        soundfile.write(corpus / f"{i}.wav", np.random.default_rng(i).normal(0, 0.1, 16_000), 16_000)
        rows.append(f"{i}.wav,{bird}")
    (corpus / "birds.csv").write_text("\n".join(rows) + "\n")
    options = ImportConfig(path=str(corpus), out=str(tmp_path / "shards"), workers=0)
    with pytest.raises(ValueError, match=r"birds \(bird_words.corpora:BIRDS\) is code from outside"):
        import_main(["birds"], options)
    options.plugins = ["bird_words"]
    assert import_main(["birds"], options) == 0
    index = load_index(str(next((tmp_path / "shards").glob("*.tar")))).table
    assert [json.loads(meta)["label"] for meta in index["meta"].to_pylist()] == ["robin", "wren", "robin"]
    assert "birds: bird_words.corpora:BIRDS, of an installed package: add plugins=[bird_words]" in table()
    with pytest.raises(ValueError, match=r"expected a data_pipelines.corpora.base.Corpus"):
        import_main(["bird_words.corpora:read"], options)


def test_a_task_comes_with_a_package_and_runs_none_of_its_code(installed: Path) -> None:
    bank = PromptBank.load(["bird_words:tasks.yaml"])
    sample = bank.sample({"label": "wren"}, "bird", "chat", "key", 0, 0)
    assert [part.text for part in sample.messages[-1].content if isinstance(part, TextPart)] == ["wren"]
    assert not imported()
    for wrong in ("bird_words:../secret.yaml", "bird_words:/etc/passwd", "no_such_package:tasks.yaml"):
        with pytest.raises(ValueError, match="expected a file, or package:file"):
            PromptBank.load([wrong])


@pytest.mark.slow
def test_a_run_scores_held_out_data_by_a_metric_of_ones_own(
    installed: Path, folder: Path, shards: Path  # noqa: F811
) -> None:  # fmt: skip
    held = f"{{shards: ['{shards}/speech-*.tar'], task: asr, metric: bird, limit: 4, seen_in_training: true}}"
    line = ["pretrain", "experiment=smoke", f"run.dir={folder}/run", "trainer.max_steps=2", "evaluation.every=1",
            "evaluation.max_new_tokens=4", f"+evaluation.sets.own={held}"]  # fmt: skip
    env = {"PYTHONPATH": f"{environment()['PYTHONPATH']}:{installed}"}

    def start(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "qa_train", *line, *more]
        return subprocess.run(command, env=environment() | env, capture_output=True, text=True, cwd=folder, timeout=300)

    first = start("plugins=[bird_words]")
    assert first.returncode == 0, first.stderr[-2000:]
    assert "own code that may run: bird_words" in first.stdout
    steps = [json.loads(row) for row in (folder / "run/metrics.jsonl").read_text().splitlines()]
    assert "eval/own" in steps[-1]
    assert "bird_words" in json.loads((folder / "run/environment.json").read_text())[-1]["own_code"]
    # To resume with more steps needs the word again: the run's own config.yaml opts nobody in.
    line[3] = "trainer.max_steps=3"
    refused = start("run.allow_config_change=true")
    assert refused.returncode == 2
    assert "add plugins=[bird_words]" in refused.stderr
    scores = [sys.executable, "-m", "qa_train", "eval", f"checkpoint={folder}/run", f"data={folder}/data.jsonl",
              f"out={folder}/out", "probe=0", "max_new_tokens=4", "plugins=[bird_words]"]  # fmt: skip
    done = subprocess.run(scores, env=environment() | env, capture_output=True, text=True, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("own code that may run: bird_words")
    result = json.loads((folder / "out/garden/scores.json").read_text())
    assert (result["metric"], result["n"]) == ("bird", 2)
    assert result["own_code"]["code"] == "bird_words.metrics:names_a_bird"
    assert len(result["own_code"]["sha256"]) == 64
    ranks = [sys.executable, "-m", "qa_train", "pairs", f"checkpoint={folder}/run", f"shards={shards}/speech-*.tar",
             f"out={folder}/pairs", "by=bird_words.metrics:short", "margin=1", "samples=6", "limit=12",
             "max_new_tokens=200", "plugins=[bird_words]"]  # fmt: skip
    done = subprocess.run(ranks, env=environment() | env, capture_output=True, text=True, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((folder / "pairs/pairs.report.json").read_text())
    assert report["by"] == "bird_words.metrics:short"
    assert all(len(pair["chosen"]) < len(pair["rejected"]) for pair in report["examples"])
    assert report["examples"]
