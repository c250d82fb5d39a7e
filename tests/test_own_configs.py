"""Configurations of one's own: in ``./configs`` and in the folders of ``--config-dir``, for every command that takes
settings; all of it away from the checkout."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from qa_train.cli import main
from qa_train.command_line.completion import complete
from qa_train.config import compose_stage, config_dir
from qa_train.config.guide import check_experiment, experiments, group_options
from qa_train.config.places import option_files, search_also

SOURCES = {"sources": {"mine": {"shards": ["a.tar"], "task": "asr"}}, "tokens_per_batch": 777}


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder with a mixture in ./configs, and a model and an experiment in ./more."""
    monkeypatch.chdir(tmp_path)
    for group in ("configs/data", "more/model", "more/experiment"):
        Path(group).mkdir(parents=True)
    Path("configs/data/mine.yaml").write_text(yaml.safe_dump(SOURCES))
    tiny = (config_dir() / "model" / "tiny.yaml").read_text()
    Path("more/model/small.yaml").write_text(tiny)
    Path("more/experiment/first.yaml").write_text(
        "# @package _global_\ndefaults: [{override /data: mine}, {override /model: small}]\ntrainer: {max_steps: 3}\n"
    )
    yield tmp_path
    search_also([])


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(list(words))
    return int(left.value.code or 0)


def test_a_mixture_in_configs_is_found_from_any_folder() -> None:
    cfg = compose_stage("pretrain", ["data=mine"])
    assert cfg.data.tokens_per_batch == 777
    assert list(cfg.data.sources) == ["mine"]
    assert complete("qa-train sft data=m") == ["data=mine"]


@pytest.mark.parametrize("flag", [["--config-dir", "more"], ["--config-dir=more"], ["-cd", "more"]])
@pytest.mark.parametrize("words", [["--cfg", "job"], ["--cfg", "job", "--resolve"]])
def test_a_stage_takes_more_folders(flag: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sft", *flag, "experiment=first", "run.dir=x", *words) == 0
    found = yaml.safe_load(capsys.readouterr().out)
    assert found["trainer"]["max_steps"] == 3
    assert found["data"]["tokens_per_batch"] == 777


@pytest.mark.parametrize("command", ["plan pretrain", "plan data", "data tokens", "data order"])
def test_every_command_with_settings_looks_there(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def composed(stage: str, words: list[str]) -> None:
        seen.append(compose_stage(stage, words))
        raise ValueError("enough")

    monkeypatch.setattr("qa_train.config.compose.compose_stage", composed)
    assert run(*command.split(), "--config-dir", "more", "experiment=first") == 2
    assert "enough" in capsys.readouterr().err
    assert (seen[0].trainer.max_steps, seen[0].data.tokens_per_batch) == (3, 777)


def test_help_shows_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pretrain", "--help") == 0
    assert "\n  mine\n" in capsys.readouterr().out
    search_also([Path("more")])
    assert ("first", "") in experiments("dpo")


def test_what_is_not_found_names_the_folders(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = config_dir().resolve()

    def told(*words: str) -> str:
        assert run(*words) == 2
        return capsys.readouterr().err

    said = told("sft", "run.dir=x", "data=mien")
    assert "did you mean data=mine? " in said
    assert said.endswith(f"; looked in {ours}/data, {own}/configs/data\n")
    said = told("plan", "sft", "experiment=first")
    assert said.endswith(f"; looked in {ours}/experiment, {own}/configs/experiment\n")
    said = told("sft", "run.dir=x", "model=y", "--config-dir", "more")
    assert said.endswith(f"; looked in {ours}/model, {own}/more/model, {own}/configs/model\n")
    Path("configs").rename("elsewhere")
    said = told("plan", "sft", "data=mine")
    assert said.endswith(f"; looked in {ours}/data, configs/data (not there)\n")
    assert "--config-dir: nowhere is not a folder" in told("sft", "run.dir=x", "--config-dir", "nowhere")


def test_a_name_in_two_folders_is_refused(own: Path) -> None:
    (own / "configs/data/starter_sft.yaml").write_text("sources: {}\n")
    with pytest.raises(
        ValueError, match=r"data=starter_sft is in \S+ and \S+/configs/data/starter_sft.yaml: rename one"
    ):
        compose_stage("sft", [])


def test_a_checkout_has_no_second_copy_of_the_options(tmp_path: Path) -> None:
    """The installed program in a checkout, of this version or another: the options of its configs are ours."""
    shutil.copytree(config_dir(), tmp_path / "configs", dirs_exist_ok=True)
    check_experiment(["experiment=smoke", "data=starter_sft"])
    (tmp_path / "qa_train" / "config").mkdir(parents=True)
    (tmp_path / "qa_train" / "config" / "places.py").touch()
    (tmp_path / "configs" / "data" / "starter_sft.yaml").write_text("tokens_per_batch: 1\n")
    check_experiment(["experiment=smoke", "data=starter_sft"])
    assert [path.stem for path in option_files("data") if tmp_path in path.parents] == ["mine"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trainer: {max_steps: 3}\n", "begins with the line '# @package _global_'"),
        ("\ufeff# @package _global_\ntrainer: {max_steps: 3}\n", "no byte-order mark"),
        ("# @package _global_\ntrainer:\n\tmax_steps: 3\n", "first.yaml, line 3, column 1: found character"),
        ("# @package _global_\ntrainer: {max_steps: 3, max_steps: 4}\n", "line 2, column 25: found duplicate key"),
        ("# @package _global_\ntrainer:\n", "trainer is null: give it a value"),
    ],
)
def test_what_is_wrong_in_a_file_of_ones_own(text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("more/experiment/first.yaml").write_text(text)
    assert run("sft", "--config-dir", "more", "experiment=first", "run.dir=x") == 2
    assert said in capsys.readouterr().err


def test_what_editors_leave_is_no_option(tmp_path: Path) -> None:
    (tmp_path / "configs" / "experiment").mkdir(parents=True)
    (tmp_path / "configs" / "experiment" / ".#mine.yaml").symlink_to("nobody@nowhere")
    (tmp_path / "configs" / "experiment" / "latin.yaml").write_bytes(b"# caf\xe9\n")
    assert "latin" in dict(group_options("experiment"))
    assert not [name for name, _ in group_options("experiment") if name.startswith(".")]
