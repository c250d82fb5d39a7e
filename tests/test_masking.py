"""What leaves a process in words holds no keys: one function, and every place that uses it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from qa_train.config import StageConfig, changed, digests, written
from qa_train.config.compose import compose_stage
from qa_train.train.job.run import RunFolder
from qa_train.utils.masking import MaskingFormatter, masked, masked_values, masked_words, shown
from tests.train.conftest import ROOT, environment

SECRET = "s3cr3t-v4lu3"
KEY_OF_SHARD = "data.sources.x.shards.0"


@pytest.fixture(autouse=True)
def no_keys_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {"PATH": "/bin"})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"https://h/x.tar?X-Amz-Signature={SECRET}&X-Amz-Date=1", "https://h/x.tar?***"),
        (f"https://a.blob.core.net/c/x.tar?sv=1&sig={SECRET}%3D: 403", "https://a.blob.core.net/c/x.tar?***: 403"),
        (f"https://user:{SECRET}@h:81/x.tar, bytes 0 to 1", "https://***@h:81/x.tar, bytes 0 to 1"),
        (f"https://{SECRET}@h/x", "https://***@h/x"),
        (f"https://u:p@{SECRET}@h/x?a#b", "https://***@h/x?***"),
        (f"s3://key:{SECRET}@bucket/x.tar", "s3://***@bucket/x.tar"),
        (f"['https://a/x?t={SECRET}', 'https://b/y?t={SECRET}']", "['https://a/x?***', 'https://b/y?***']"),
        (f"https://h/page#access_token={SECRET}", "https://h/page#***"),
        (f"(https://h/x.tar?{SECRET}).", "(https://h/x.tar?***)."),
        (f"Authorization: Bearer {SECRET}{SECRET}", "Authorization: Bearer ***"),
        (f"bearer {SECRET}{SECRET}", "bearer ***"),
        (f"api_key={SECRET}", "api_key=***"), (f"API-KEY: {SECRET}", "API-KEY: ***"),
        (f"aws_secret_access_key = {SECRET}", "aws_secret_access_key = ***"),
        (f'{{"account_key": "{SECRET}", "n": 1}}', '{"account_key": "***", "n": 1}'),
        (f"hf_token={SECRET} x", "hf_token=*** x"), (f"password='{SECRET}'", "password='***'"),
        (f"AccountName=a;AccountKey={SECRET};x", "AccountName=a;AccountKey=***;x"),
        ("hf_" + "a1" * 15, "***"), ("sk-proj-" + "a1" * 15, "***"), ("ghp_" + "a1" * 15, "***"),
        ("AKIA" + "A1B2" * 4, "***"), ("AIza" + "a1" * 17, "***"),
    ],
)  # fmt: skip
def test_one_function_takes_secrets_out_of_a_text(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked(shown) == shown


@pytest.mark.parametrize(
    "text",
    ["https://h/folder/x.tar: no such file", "runs/a?b/x.tar", "data.tokens_per_batch=250", "pad_token: <pad>",
     "trainer.max_tokens=3", "key: speech-001", "monkey=banana", "keys are [1, 2]", "tokenizer=builtin:nano",
     "user@example.org", "s3://bucket/shard-00001.tar", "mask-1 risk-assessment", "signatures differ: 3 of 4"],
)  # fmt: skip
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text) == text


def test_values_of_the_environment_are_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = tmp_path / "key.json"
    place.touch()
    names = {"WANDB_API_KEY": SECRET, "MY_TOKEN": SECRET + "-longer", "DB_PASSWORD": "short", "DATA": "/data/corpora",
             "GOOGLE_CREDENTIALS": str(place), "HF_TOKEN_PATH": "/home/x/.token", "KEYBOARD": "qwertzu"}  # fmt: skip
    monkeypatch.setattr("os.environ", names)
    assert masked(f"a {SECRET}-longer b {SECRET} c") == "a *** b *** c"
    for value in ("short", "/data/corpora", str(place), "/home/x/.token", "qwertzu"):
        assert masked(value) == value


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        (f"data.storage.options.s3.secret={SECRET}", "data.storage.options.s3.secret=***"),
        (f"+data.storage.options.s3.key={SECRET}", "+data.storage.options.s3.key=***"),
        (f"data.storage.options={{s3: {{key: {SECRET}}}}}", "data.storage.options=***"),
        (f"data.storage={{options: {{gs: {{token: {SECRET}}}}}}}", "data.storage=***"),
        (f"data={{storage: {{options: {{gs: {{token: {SECRET}}}}}}}}}", "data=***"),
        (f"storage.options.abfs.account_key={SECRET}", "storage.options.abfs.account_key=***"),
        ("data.storage.options.s3.anon=true", "data.storage.options.s3.anon=true"),
        ("data.storage.options.s3.endpoint_url=http://h", "data.storage.options.s3.endpoint_url=http://h"),
        ("data.storage.options.s3.key=${oc.env:KEY}", "data.storage.options.s3.key=${oc.env:KEY}"),
        ("data.storage.timeout_s=60", "data.storage.timeout_s=60"), ("data=starter_sft", "data=starter_sft"),
        (f"+data.sources.x.shards=['https://h/x.tar?{SECRET}']", "+data.sources.x.shards=['https://h/x.tar?***']"),
    ],
)  # fmt: skip
def test_command_lines(word: str, shown: str) -> None:
    assert masked_words([word]) == [shown]


def test_trees_of_values_are_copied() -> None:
    tree = {"a": [f"https://h/x?{SECRET}", 3, None, True], "b": {"c": (1.5, f"password={SECRET}")}}
    assert masked_values(tree) == {"a": ["https://h/x?***", 3, None, True], "b": {"c": [1.5, "password=***"]}}
    assert SECRET in tree["a"][0]


def composed(*words: str, shards: str = "https://h/x.tar") -> StageConfig:
    source = f"+data.sources.x={{shards: ['{shards}'], task: asr}}"
    return compose_stage("pretrain", ["experiment=smoke", "data=empty", source, *words])


def test_what_comes_from_the_environment_is_written_as_its_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {"URL": f"https://h/x.tar?{SECRET}", "KEY": SECRET, "LR": "0.25", "N": "7"})
    cfg = composed(
        "+data.storage.options={s3: {key: '${oc.env:KEY}', anon: false}}",
        "trainer.learning_rate=${oc.env:LR}",
        "trainer.max_steps='${oc.decode:${oc.env:N}}'",
        "tracking.project=${run.dir}-${oc.env:KEY}",
        "tracking.tags=[a,'${oc.env:KEY}']",
        "model.name=${tracking.project}",
        "run.dir=/tmp/${oc.env:NOT_THERE,x}",
        shards="${oc.env:URL}",
    )
    assert cfg.data.storage.options["s3"]["key"] == SECRET
    assert cfg.data.sources["x"].shards == [f"https://h/x.tar?{SECRET}"]
    assert (cfg.trainer.learning_rate, cfg.trainer.max_steps, cfg.model.name) == (0.25, 7, f"/tmp/x-{SECRET}")
    found = written(cfg)
    assert found["data"]["storage"]["options"] == {"s3": {"key": "${oc.env:KEY}", "anon": False}}
    assert found["data"]["sources"]["x"]["shards"] == ["${oc.env:URL}"]
    assert found["trainer"]["learning_rate"] == "${oc.env:LR}"
    assert found["trainer"]["max_steps"] == "${oc.decode:${oc.env:N}}"
    assert found["tracking"]["project"] == "${run.dir}-${oc.env:KEY}"
    assert found["tracking"]["tags"] == ["a", "${oc.env:KEY}"]
    assert found["model"]["name"] == "${tracking.project}"
    assert found["run"]["dir"] == "/tmp/${oc.env:NOT_THERE,x}"
    assert SECRET not in json.dumps(found)
    assert "from_environment" not in found
    assert SECRET not in repr(digests(cfg, {}))


def test_digests_tell_a_changed_value_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {"LR": "0.25", "N": "7"})
    words = ("trainer.learning_rate=${oc.env:LR}", "trainer.max_steps=${oc.env:N}")
    before = digests(composed(*words), {})
    assert digests(composed(*words), {}) != before, "salts must differ"
    assert changed(composed(*words), before) == []
    monkeypatch.setattr("os.environ", {"LR": "0.5", "N": "7"})
    assert changed(composed(*words), before) == ["trainer.learning_rate"]
    assert changed(composed(*words), {}) == []
    # Another signature opens the same shard; another shard is another one.
    for number, (url, differ) in enumerate((("x.tar?sig=1", []), ("x.tar?sig=2", []), ("y.tar?sig=2", [KEY_OF_SHARD]))):
        monkeypatch.setattr("os.environ", {"URL": f"https://h/{url}"})
        before = before if number else digests(composed(shards="${oc.env:URL}"), {})
        assert changed(composed(shards="${oc.env:URL}"), before) == differ


def recorded(folder: Path, cfg: StageConfig) -> RunFolder:
    cfg.run.dir = str(folder)
    run = RunFolder(cfg, is_main=True)
    run.take(cfg.trainer.max_steps)
    return run


@pytest.mark.parametrize(
    ("then", "now", "differ"),
    [
        ({"LR": "0.25", "KEY": "a"}, {"LR": "0.25", "KEY": "b"}, []),
        ({"LR": "0.25", "KEY": "a"}, {"LR": "0.5", "KEY": "a"}, ["trainer.learning_rate"]),
    ],
)
def test_a_resume_compares_what_the_references_stand_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: dict[str, str], now: dict[str, str], differ: list[str]
) -> None:
    words = ("trainer.learning_rate=${oc.env:LR}", "+data.storage.options={s3: {key: '${oc.env:KEY}'}}")
    shards = "https://h/x.tar?sig={}"
    monkeypatch.setattr("os.environ", then)
    recorded(tmp_path, composed(*words, shards=shards.format("old"))).record(None)
    for path in tmp_path.iterdir():
        text = path.read_text()
        assert "sig=" not in text
        assert "0.25" not in text
    monkeypatch.setattr("os.environ", now)
    # Another signature opens the same shard.
    run = recorded(tmp_path, composed(*words, shards=shards.format("new")))
    assert run._changed(yaml.safe_load((tmp_path / "config.yaml").read_text())) == differ
    other = recorded(tmp_path, composed(*words, shards="https://h/y.tar?sig=new"))
    assert other._changed(yaml.safe_load((tmp_path / "config.yaml").read_text())) == ["data.sources"]


def test_a_run_folder_of_an_older_version_still_compares(tmp_path: Path) -> None:
    cfg = composed(shards="https://h/x.tar?sig=old")
    run = recorded(tmp_path, cfg)
    run.record(None)
    old = yaml.safe_load((tmp_path / "config.yaml").read_text())
    old["data"]["sources"]["x"]["shards"] = ["https://h/x.tar?sig=older"]
    starts = json.loads((tmp_path / "environment.json").read_text())
    del starts[-1]["environment"]
    (tmp_path / "environment.json").write_text(json.dumps(starts))
    assert run._changed(old) == []


def test_the_command_of_a_start_is_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["qa-train sft", f"data.storage.options.s3.key={SECRET}", f"x=http://a:{SECRET}@h/"]
    )
    recorded(tmp_path, composed()).record(None)
    text = (tmp_path / "environment.json").read_text()
    assert SECRET not in text
    assert "data.storage.options.s3.key=***" in text


def test_what_is_shown_cannot_rewrite_a_terminal() -> None:
    text = "answers 503 \x1b[31mred\x1b[0m \x1b[2J\x1b]0;title\x07\r\x9b31m\u202e key=\u00e4\n\tnext"
    told = r"answers 503 {red} \x1b[2J\x1b]0;title\x07\r\x9b31m\u202e key=ä".format(red="\x1b[31mred\x1b[0m")
    assert shown(text) == told + "\n\tnext"
    formatter = MaskingFormatter("%(message)s")
    assert formatter.format(logging.makeLogRecord({"msg": text})) == shown(text)


def test_log_records_and_their_traces_are_masked() -> None:
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "%s failed", (f"https://h/x?{SECRET}",), None)
    try:
        raise OSError(f"https://a:{SECRET}@h/x")
    except OSError:
        record.exc_info = sys.exc_info()
    shown = MaskingFormatter("%(message)s").format(record)
    assert SECRET not in shown
    assert "https://h/x?*** failed" in shown
    assert "https://***@h/x" in shown


@pytest.mark.parametrize(
    "act", ["raise OSError(WORDS)", "warnings.warn(WORDS)", "logging.getLogger('any').error('%s', WORDS)",
            "raise ValueError(WORDS) from KeyError(WORDS)", "say(WORDS, error=True)", "refused('sft', WORDS)"]
)  # fmt: skip
def test_nothing_is_printed_unmasked(act: str) -> None:
    program = (
        "import logging, warnings\nfrom qa_train.commands.guard import refused, show_warnings\n"
        f"from qa_train.utils.progress import say\nshow_warnings()\nWORDS = open({__file__!r}).name + "
        f"' https://h/x.tar?' + '-'.join(['s3cr3t', 'v4lu3'])\n{act}\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert SECRET not in done.stdout + done.stderr
    assert "https://h/x.tar?***" in done.stderr


def test_the_resolved_configuration_is_printed_with_references(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from qa_train.cli import main

    monkeypatch.setattr("os.environ", {"KEY": SECRET, "PATH": "/bin"})
    words = ["experiment=smoke", "run.dir=x", "tracking.project=${oc.env:KEY}", "--cfg", "job", "--resolve"]
    with pytest.raises(SystemExit) as end:
        main(["pretrain", *words])
    assert end.value.code == 0
    shown: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    assert shown["tracking"]["project"] == "${oc.env:KEY}"
    assert shown["run"]["dir"] == "x"
