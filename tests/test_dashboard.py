"""The dashboard: every run of a folder on one page that needs no network, and that damaged files do not break."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from qa_train.command_line.command_table import run as command
from qa_train.dashboard import live as live_module
from qa_train.dashboard.live import Live, LiveServer
from qa_train.report import runs as runs_module
from qa_train.report.curves import LAST_STEPS, MAX_POINTS, board_of, panels_of
from qa_train.report.runs import Run, Steps, differences, find_runs, read_run
from qa_train.utils.loopback import listen
from tests.report.parsed import Parsed

SOURCES = 11


def make(folder: Path, stage: str, *, steps: int = 40, **settings: object) -> Path:
    """A run folder like those of training: metrics, configuration, one start."""
    folder.mkdir(parents=True)
    rows = []
    for step in range(1, steps + 1):
        row = {
            "step": step,
            "loss": 3.0 / step,
            "grad_norm": 1.0,
            "learning_rate": 1e-5 * step,
            "tokens": 900,
            "seconds": 2.0,
            "data_wait_s": 0.1,
            "tokens_per_s": 450.0,
            "samples_per_s": 5.0,
            "audio_s": 36.0,
            "audio_s_per_s": 18.0,
            "skipped_samples": step // 10,
            "skipped/bad audio": step // 10,
            "learning_rate/llm": 1e-5,
            "useful_tflops_per_s": 0.02,
        }
        row |= {f"{name}/source{i}": 2.0 / step + i for name in ("loss", "epoch") for i in range(SOURCES)}  # fmt: skip
        if stage == "dpo":
            row |= {"rewards/accuracies": 0.5 + step / 100, "rewards/margins": step / 10}
        if step % 10 == 0:
            row["checkpoint_s"] = 1.5
        rows.append(json.dumps(row))
    (folder / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    trainer = {"max_steps": steps, "batches_per_step": 2, "learning_rate": 1e-5} | settings
    cfg = {"stage": stage, "run": {"dir": str(folder)}, "model": {"name": "nano"}, "trainer": trainer,
           "data": {"tokens_per_batch": 500}}  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg))
    (folder / "environment.json").write_text(json.dumps([{"git_commit": "0123456789abcdef"}]))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    make(root / "dpo", "dpo")
    make(root / "first" / "pretrain", "pretrain")
    make(root / "second" / "pretrain", "pretrain", learning_rate="<script>")
    make(root / "sft", "sft", steps=1)
    (root / "sft" / "finished.json").write_text("{}")
    return root


def board(page: Path) -> dict[str, Any]:
    """What the scripts of a written page show."""
    return dict(Parsed.of(page.read_text()).board)


def test_the_page_holds_every_run_and_needs_nothing_else(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("dashboard", [str(runs), "title=My & </title><script>alert(1)</script>"]) == 0
    page = (runs / "dashboard.html").read_text()
    parsed = Parsed.of(page)
    parsed.check()
    assert "My &amp; &lt;/title&gt;" in page
    shown = parsed.board
    assert [(run["name"], run["stage"]) for run in shown["runs"]] == [
        ("first/pretrain", "pretrain"), ("second/pretrain", "pretrain"), ("sft", "sft"), ("dpo", "dpo")
    ]  # fmt: skip
    assert shown["runs"][0]["about"] == "nano · commit 01234567"
    assert [run["finished"] for run in shown["runs"]] == [False, False, True, False]
    pretrain, sft, dpo = shown["stages"]
    assert [stage["title"] for stage in shown["stages"]] == ["stage 1: pretrain", "stage 2: sft", "stage 3: dpo"]
    groups = [group["title"] for group in pretrain["groups"]]
    assert groups[0] == "loss and held-out scores"
    for title in ("loss by source", "passes through each source", "learning rate by part", "speed",
                  "skipped samples by reason, since the last start"):  # fmt: skip
        assert title in groups
    # One step is no curve.
    assert sft["groups"] == []
    assert "rewards/margins" in [panel["key"] for panel in dpo["groups"][0]["panels"]]
    # The one setting in which two runs of a stage differ; markup in it stays text.
    assert pretrain["differences"] == {"trainer.learning_rate": ["1e-05", "<script>"]}
    assert "4 runs" in capsys.readouterr().out


def test_curves_follow_from_the_metrics(runs: Path) -> None:
    found = {run.name: run for run in find_runs([runs])}
    dpo = found["dpo"]
    curves = board_of([dpo])["runs"][0]["curves"]
    assert curves["unused_percent"]["y"] == [pytest.approx(10.0)] * 40
    assert curves["data_wait_percent"]["y"] == [pytest.approx(5.0)] * 40
    assert curves["useful_gflops_per_s"]["y"] == [pytest.approx(20.0)] * 40
    keys = {panel.key for panel in panels_of([dpo])}
    assert {f"loss/source{i}" for i in range(SOURCES)} <= keys
    # Always zero, or in no row: not drawn.
    assert "useful_mfu" not in keys
    assert panels_of([found["sft"]]) == []
    drawn = board_of([dpo])["runs"][0]
    assert drawn["curves"]["checkpoint_s"] == {"y": [1.5] * 4, "at": [9, 19, 29, 39]}
    assert drawn["x"]["tokens"][:2] == [900, 1800]
    assert drawn["x"]["audio"][-1] == 40 * 36
    assert drawn["x"]["time"][-1] == 80


def test_a_long_run_is_averaged_and_says_so(tmp_path: Path) -> None:
    steps = 3 * MAX_POINTS
    make(tmp_path / "long", "sft", steps=steps)
    rows = [json.loads(line) for line in (tmp_path / "long" / "metrics.jsonl").read_text().splitlines()]
    rows[99] |= {"eval/asr": 20.0, "evaluation": {"asr": {"metric": "wer", "n": 7}}}
    rows[200] |= {"eval/asr": 10.0, "evaluation": {"asr": {"metric": "wer", "n": 7}}}
    (tmp_path / "long" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = board_of(find_runs([tmp_path]))
    (run,) = shown["runs"]
    assert run["per_point"] == 3
    assert len(run["x"]["step"]) <= MAX_POINTS + 2
    assert run["curves"]["loss"]["y"][0] == pytest.approx(3.0 * (1 + 1 / 2 + 1 / 3) / 3, rel=1e-5)
    # Held-out scores stand at their own step.
    assert [run["x"]["step"][i] for i in run["curves"]["eval/asr"]["at"]] == [100, 201]
    assert shown["scores"] == {"eval/asr": "held out: asr (wer, n = 7)"}


def test_the_table_says_what_its_loss_is(runs: Path) -> None:
    with (runs / "dpo" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "eval/asr": 12.5}\n')
    assert command("dashboard", [str(runs)]) == 0
    dpo = board(runs / "dashboard.html")["runs"][3]
    assert board(runs / "dashboard.html")["last_steps"] == LAST_STEPS
    assert dpo["loss"] == pytest.approx(sum(3.0 / step for step in range(21, 41)) / LAST_STEPS)
    assert dpo["last"] == {"eval/asr": 12.5}
    assert (dpo["steps"], dpo["planned"], dpo["tokens_per_s"], dpo["skipped"]) == (40, 40, 450.0, 4)


def test_steps_trained_again_replace_the_old_ones(runs: Path) -> None:
    with (runs / "dpo" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 39, "loss": 7.0}\n{"step": 39, "eval/asr": 1.0}\n{"step": "40", "loss": 1.0}\n')
    dpo = {run.name: run for run in find_runs([runs])}["dpo"]
    assert [row["step"] for row in dpo.rows] == list(range(1, 41))
    assert dpo.rows[38] == {"step": 39, "loss": 7.0, "eval/asr": 1.0}


def test_stages_come_in_order_and_only_differences_count(runs: Path) -> None:
    found = find_runs([runs])
    assert [run.stage for run in found] == ["pretrain", "pretrain", "sft", "dpo"]
    assert list(differences(found[:2])) == ["trainer.learning_rate"]


def test_damaged_files_hide_no_run(runs: Path) -> None:
    (runs / "dpo" / "config.yaml").write_text("stage: [")
    (runs / "dpo" / "environment.json").write_text("{")
    with (runs / "dpo" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "loss": null, "grad_norm": NaN}\n{"step": 42, "lo')
    with (runs / "sft" / "metrics.jsonl").open("ab") as binary:
        binary.write(b'\n\x9f\xff{"step": 43}\n')
    assert command("dashboard", [str(runs), f"out={runs}/x/page.html"]) == 0
    shown = board(runs / "x" / "page.html")
    assert [run["stage"] for run in shown["runs"]] == ["pretrain", "pretrain", "sft", "other"]
    assert "NaN" not in json.dumps(shown)


@pytest.mark.parametrize(
    "text", ["a: 2024-13-45", "a: !!int zz", "a: &a [*a]", "[" * 3000, f"a: {'9' * 5000}", "a: \xff"]
)
def test_no_configuration_hides_the_runs(runs: Path, text: str) -> None:
    (runs / "dpo" / "config.yaml").write_text(text, encoding="latin-1")
    assert [run.stage for run in find_runs([runs])] == ["pretrain", "pretrain", "sft", "other"]
    assert find_runs([runs])[-1].config == {}


@pytest.mark.parametrize("depth", [900, 100_000])
def test_lines_and_files_nested_without_end_are_left_out(runs: Path, depth: int) -> None:
    answered(runs / "dpo", clip_bytes=3000)
    deep = "[" * depth + "]" * depth
    for path in (runs / "dpo" / "metrics.jsonl", *(runs / "dpo").rglob("predictions.jsonl")):
        path.write_text(f'{deep}\n{{"step": 41, "a": {deep}, "loss": 1.0}}\n{path.read_text()}')
    (runs / "dpo" / "environment.json").write_text(deep)
    assert command("dashboard", [str(runs)]) == 0
    dpo = board(runs / "dashboard.html")["runs"][3]
    assert (dpo["name"], dpo["trained"]) == ("dpo", 41 if depth < 1000 else 40)
    assert "said at 40" in (runs / "dashboard.html").read_text()
    assert len(Steps(runs / "dpo" / "metrics.jsonl").rows()) == dpo["trained"]


def test_a_run_deleted_while_it_is_read_is_left_out(runs: Path) -> None:
    live = Live([runs], "t")
    before = shown_by(live)

    def read(folder: Path, name: str) -> Run:
        if folder.name == "sft":
            shutil.rmtree(folder)
        return read_run(folder, name)

    assert len(before["runs"]) == 4
    assert [run.name for run in find_runs([runs], read)] == ["first/pretrain", "second/pretrain", "dpo"]
    # A served page forgets it, too.
    assert len(shown_by(live)["runs"]) == 3
    assert len(live._known) == 3


def shown_by(live: Live) -> dict[str, Any]:
    return dict(json.loads(live.data("") or b""))


@pytest.mark.parametrize(
    "text",
    ['"\\ud800"', '"</script><script>alert(1)</script>"', '"\\u2028<!--<script>"', '{"a": [NaN, 1e999]}', "2024-01-01",
     '"\\u0000"'],
)  # fmt: skip
def test_no_text_of_a_run_leaves_the_block_of_data(runs: Path, text: str) -> None:
    (runs / "dpo" / "config.yaml").write_text(
        f"stage: {text}\nmodel: {{name: {text}}}\ntrainer: {{max_steps: {text}}}\n"
    )
    (runs / "sft" / "environment.json").write_text(f'[{{"git_commit": {text if text[0] != "2" else 3}}}]')
    rows = f'{{"step": 41, "loss": 1.0, "eval/{json.loads(text) if text[0] == chr(34) else "x"}": 2.0}}\n'
    with (runs / "dpo" / "metrics.jsonl").open("a", errors="surrogatepass") as file:
        file.write(rows)
    assert command("dashboard", [str(runs)]) == 0
    page = (runs / "dashboard.html").read_text()
    Parsed.of(page).check()
    assert len(board(runs / "dashboard.html")["runs"]) == 4


def test_wrong_use(tmp_path: Path) -> None:
    for words, message in (
        ([], "give RUNS_DIR"),
        ([str(tmp_path)], r"no metrics\.jsonl"),
        (["nowhere"], "not a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            command("dashboard", words)


def answered(run: Path, *, clip_bytes: int) -> None:
    """Held-out answers of four evaluations, of two questions, one of which kept its clip."""
    clip = run / "held_out" / "clips" / "asr" / "a.ogg"
    clip.parent.mkdir(parents=True)
    clip.write_bytes(b"OggS".ljust(clip_bytes, b"x"))
    for step, right in ((0, False), (10, False), (20, True), (40, True)):
        row = {"id": "a", "prompt": "What <is> said?", "gt": "yes", "prediction": f"said at {step}", "right": right}
        path = run / "held_out" / f"step-{step}" / "asr" / "predictions.jsonl"
        path.parent.mkdir(parents=True)
        rows = [row | {"clip": "clips/asr/a.ogg"}, row | {"id": "b", "prompt": "no clip was kept"}]
        path.write_text("".join(json.dumps(each) + "\n" for each in rows) + '{"id": "c", "pro')


SECRET = "root:x:0:0:a-file-of-this-machine"


@pytest.mark.parametrize(
    "kind",
    ["absolute", "dots", "dots inside", "link", "link to a folder", "circle", "null byte", "no ogg", "folder", "number",
     "very long"],
)  # fmt: skip
def test_a_strangers_run_puts_no_file_of_this_machine_into_the_page(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    run = runs / "dpo"
    answered(run, clip_bytes=3000)
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    # Even one that is an Ogg file.
    (outside / "passwd").write_text("OggS" + SECRET)
    (run / "own.json").write_text(SECRET)
    clips = run / "held_out" / "clips"
    (clips / "link.ogg").symlink_to(outside / "passwd")
    (clips / "folder").symlink_to(outside)
    (clips / "circle").symlink_to(clips / "circle")
    name: object = {
        "absolute": str(outside / "passwd"), "dots": f"../../../../{outside.name}/passwd", "link": "clips/link.ogg",
        "dots inside": f"clips/../../../../../{outside.name}/passwd", "link to a folder": "clips/folder/passwd",
        "circle": "clips/circle", "null byte": "clips/a\0.ogg", "no ogg": "../own.json", "folder": "..", "number": 3,
        "very long": "x" * 5000,
    }[kind]  # fmt: skip
    for path in (run / "held_out").glob("step-*/asr/predictions.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()[:2]]
        path.write_text("".join(json.dumps(row | ({"clip": name} if "clip" in row else {})) + "\n" for row in rows))
    assert command("dashboard", [str(runs), "audio_mib=0.001" if kind == "link" else "audio_mib=8"]) == 0
    page = (runs / "dashboard.html").read_text()
    assert "data:audio" not in page
    assert "<audio" not in page
    assert SECRET not in page
    said = capsys.readouterr().err
    if kind in ("folder", "number"):
        assert "is gone" in page
    else:
        assert "is not a clip of this run: not shown" in page
        assert "1 clip(s) not shown" in said
        assert str(name)[:20].replace("\0", "\\x00") in said


def test_a_page_holds_no_keys(runs: Path) -> None:
    for path in runs.rglob("config.yaml"):
        path.write_text(path.read_text() + "extra: 'https://user:pw1@h/x.tar?sig=pw2'\n")
        break
    assert command("dashboard", [str(runs)]) == 0
    page = (runs / "dashboard.html").read_text()
    assert "https://***@h/x.tar?***" in page
    assert "pw1" not in page
    assert "pw2" not in page


def test_held_out_answers_can_be_heard(runs: Path) -> None:
    answered(runs / "dpo", clip_bytes=3000)
    assert command("dashboard", [str(runs)]) == 0
    page = (runs / "dashboard.html").read_text()
    Parsed.of(page).check()
    assert page.count('src="data:audio/ogg;base64,') == 1
    assert "What &lt;is&gt; said?" in page
    assert "no clip was kept" not in page
    # First, middle and last evaluation, with what is right and wrong.
    assert [f"said at {step}" in page for step in (0, 10, 20, 40)] == [True, False, True, True]
    assert (page.count('class="wrong"'), page.count('class="right"')) == (1, 2)
    # Without room in the page, the player links to the file, from wherever the page lies.
    assert command("dashboard", [str(runs), f"out={runs}/x/page.html", "audio_mib=0.001"]) == 0
    (source,) = re.findall(r'<audio [^>]*src="([^"]+)"', (runs / "x" / "page.html").read_text())
    assert (runs / "x" / source).resolve() == (runs / "dpo" / "held_out" / "clips" / "asr" / "a.ogg").resolve()


@pytest.fixture
def served(runs: Path) -> Iterator[tuple[int, Live]]:
    live = Live([runs], "Live")
    running = LiveServer(live, listen("127.0.0.1", 0, "dashboard"))
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield running.server_port, live
    running.shutdown()
    running.server_close()
    thread.join()


def get(port: int, path: str, host: str | None = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{port}", **headers})
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def test_a_served_page_gets_new_values(runs: Path, served: tuple[int, Live]) -> None:
    port, _ = served
    status, page = get(port, "/")
    assert status == 200
    shown = Parsed.of(page.decode()).board
    assert shown["poll_s"] >= 5
    assert get(port, f"/data.json?since={shown['version']}") == (204, b"")
    with (runs / "dpo" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "loss": 0.5, "tokens": 900, "seconds": 2.0}\n')
    make(runs / "new", "sft", steps=3)
    status, body = get(port, f"/data.json?since={shown['version']}")
    assert status == 200
    now = json.loads(body)
    assert [run["name"] for run in now["runs"]] == ["first/pretrain", "second/pretrain", "new", "sft", "dpo"]
    assert now["runs"][-1]["steps"] == 41
    assert now["runs"][-1]["curves"]["loss"]["y"][-1] == 0.5
    assert get(port, f"/data.json?since={now['version']}")[0] == 204
    # Runs whose files are as they were are not read again.
    (runs / "sft" / "finished.json").unlink()
    assert [run["finished"] for run in json.loads(get(port, "/data.json")[1])["runs"]] == [False] * 5


def test_only_changed_runs_are_read_again(
    runs: Path, served: tuple[int, Live], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, _ = served
    get(port, "/")
    read: list[str] = []

    def counted(folder: Path, name: str, steps: Steps) -> Run:
        read.append(name)
        return read_run(folder, name, steps)

    monkeypatch.setattr("qa_train.dashboard.live.read_run", counted)
    (runs / "dpo" / "finished.json").write_text("{}")
    get(port, "/data.json")
    get(port, "/data.json")
    assert read == ["dpo"]


def test_a_file_that_grows_is_read_on_and_another_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0 / step, "text": "x" * 100}) + "\n" for step in range(1, 101)]
    steps, parsed = Steps(path), []
    whole = runs_module._row
    monkeypatch.setattr(runs_module, "_row", lambda line: (parsed.append(line), whole(line))[1])

    def read() -> int:
        """How many lines were parsed; the rows are those of a reader that starts anew."""
        parsed.clear()
        found, count = steps.rows(), len(parsed)
        assert found == Steps(path).rows()
        return count

    path.write_text("".join(lines))
    assert read() == 100
    # Half a line, its other half, a step that is trained again, and scores of it.
    path.write_text("".join(lines) + '{"step": 101, "lo')
    assert read() == 1
    grown = "".join(lines) + '{"step": 101, "loss": 2.0}\n{"step": 99, "loss": 7.0}\n{"step": 99, "eval/asr": 1.0}'
    path.write_text(grown)
    assert read() == 3
    path.write_text(grown + '\n{"step": 102, "loss": 1.0}\n')
    assert read() == 2
    assert steps.rows()[98] == {"step": 99, "loss": 7.0, "eval/asr": 1.0}
    # Begun anew, shorter and longer, and with another end.
    for text in (lines[1:50], lines[50:] + lines + lines, lines[50:] + lines + lines[:-1] + lines[:1]):
        path.write_text("".join(text))
        assert read() == len(text)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        steps.rows()


def test_names_of_metrics_are_kept_once(runs: Path) -> None:
    rows = find_runs([runs])[-1].rows
    assert len(rows) == 40
    names = {id(key) for row in rows for key in row}
    assert len(names) == len({key for row in rows for key in row})


def test_what_drawing_takes_counts_as_time_too(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def slow(shown: list[Run], kept: dict[str, int]) -> dict[str, Any]:
        clock[0] += 3.0
        return made(shown, kept)

    made = live_module.board
    monkeypatch.setattr(live_module, "board", slow)
    monkeypatch.setattr(live_module.time, "monotonic", lambda: clock[0])
    live = Live([runs], "t")
    assert shown_by(live)["poll_s"] == pytest.approx(30.0)
    assert Parsed.of(live.page().decode()).board["poll_s"] == pytest.approx(30.0)


def test_what_is_no_address_is_said(served: tuple[int, Live]) -> None:
    status, said = get(served[0], "http://[")
    assert (status, said) == (400, b"no address: Invalid IPv6 URL\n")


@pytest.mark.parametrize("path", ["/", "/data.json", "/clips/0"])
def test_other_sites_cannot_ask(runs: Path, served: tuple[int, Live], path: str) -> None:
    answered(runs / "dpo", clip_bytes=3000)
    port, _ = served
    get(port, "/")
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "192.168.0.9", " ", "[::2]"):
        assert get(port, path, host)[0] == 400, host
    for host in ("localhost", f"LOCALHOST:{port}", "127.0.0.1", f"[::1]:{port}", "[::1]"):
        assert get(port, path, host)[0] == 200, host


def test_only_clips_of_the_runs_are_served(runs: Path, tmp_path: Path, served: tuple[int, Live]) -> None:
    answered(runs / "dpo", clip_bytes=3000)
    port, _ = served
    page = get(port, "/")[1].decode()
    assert "data:audio" not in page
    assert re.findall(r'<audio [^>]*src="([^"]+)"', page) == ["clips/0"]
    # The number stays, for a page that is open.
    assert 'src="clips/0"' in get(port, "/")[1].decode()
    clip = runs / "dpo" / "held_out" / "clips" / "asr" / "a.ogg"
    raw = clip.read_bytes()
    assert get(port, "/clips/0") == (200, raw)
    parts = {"2-4": (206, raw[2:5]), "2990-": (206, raw[2990:]), "0-99999": (206, raw)}
    for asked, answer in (parts | dict.fromkeys(("4000-", "-5", "5-2", "1-2,4-5"), (200, raw))).items():
        assert get(port, "/clips/0", Range=f"bytes={asked}") == answer, asked
    for path in ("/clips/1", "/clips/-1", "/clips/../dpo/config.yaml", "/config.yaml", "/clips/0/..", "/clips/²",
                 "//etc/passwd", "/../../etc/passwd", "/clips/" + "9" * 5000):  # fmt: skip
        assert get(port, quote(path, safe="/"))[0] == 404, path
    (tmp_path / "secret.ogg").write_text("OggS" + SECRET)
    clip.unlink()
    assert get(port, "/clips/0")[0] == 404
    clip.symlink_to(tmp_path / "secret.ogg")
    assert get(port, "/clips/0")[0] == 404


def test_a_folder_may_be_served_before_its_first_run(tmp_path: Path) -> None:
    assert Parsed.of(Live([tmp_path], "t").page().decode()).board["runs"] == []


def test_what_serving_would_ignore_is_refused(runs: Path) -> None:
    with pytest.raises(ValueError, match="serve=true writes no file"):
        command("dashboard", [str(runs), "serve=true", "out=page.html"])
    with contextlib.closing(listen("127.0.0.1", 0, "test")) as taken:
        taken.listen()
        words = [str(runs), "serve=true", f"port={taken.getsockname()[1]}"]
        with pytest.raises(ValueError, match=r"dashboard: cannot listen on 127\.0\.0\.1:.*choose another port="):
            command("dashboard", words)
