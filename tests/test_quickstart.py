"""The quickstart's clock and recipes: what it says of time, what it refuses, and what a smaller recipe claims."""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import quickstart
import quickstart_report
import quickstart_time
from quickstart_recipes import PARTS, RECIPES, STAGES, settings
from quickstart_time import COSTS, Clock, Probe, advice, calibrate, expected

from qa_train.config import config_dir, register, to_stage_config
from qa_train.data.shards.index import load_index
from qa_train.model import load_tokenizer

ROOT = Path(__file__).parent.parent
QUICK = Probe(encoder=0.004, step=0.45, answer=0.15, busy=1.0, arithmetic="bfloat16")


def test_every_part_has_a_cost_and_an_output(tmp_path: Path) -> None:
    assert tuple(COSTS) == PARTS
    assert set(quickstart.Quickstart(tmp_path / "run", RECIPES["smoke"]).outputs()) == set(PARTS)


def test_smaller_recipes_take_less_and_slower_machines_more() -> None:
    full, short, smoke = (expected(QUICK, RECIPES[name], 2) for name in ("full", "short", "smoke"))
    assert sum(full.values()) > 2 * sum(short.values()) > 4 * sum(smoke.values()) / 3
    assert all(full[part] >= short[part] >= smoke[part] > 0 for part in PARTS)
    slow = Probe(encoder=0.02, step=4.5, answer=0.15, busy=1.0, arithmetic="float32")
    by_step = expected(slow, RECIPES["full"], 2)["sft"] - full["sft"]
    assert by_step == pytest.approx(COSTS["sft"]["step"] * (4.5 - 0.45))
    assert expected(QUICK, RECIPES["full"], 1) == {part: 2 * seconds for part, seconds in full.items()}
    busy = Probe(encoder=0.004, step=0.45, answer=0.15, busy=3.0, arithmetic="bfloat16")
    assert sum(expected(busy, RECIPES["full"], 2).values()) == pytest.approx(3 * sum(full.values()))


def test_what_is_left_follows_what_the_parts_really_took() -> None:
    plan = dict.fromkeys(PARTS, 60.0)
    clock = Clock(plan, {"data"})
    assert clock.left() == 600
    # 60 s more than said, of 660 s: the plan has the weight of 66 s. Nothing is known of training yet.
    assert clock.finish("untrained model", 120.0) == "2 of 11 parts, about 13 min left"
    assert clock.left() == pytest.approx(9 * 60 * (120 + 66) / (60 + 66))
    clock.finish("evaluate before", 120.0)
    # Training is as quick as said: the two trainings left take 60 s each, the other five parts more.
    assert clock.finish("pretrain", 60.0).startswith("4 of 11 parts, about ")
    assert clock.left() == pytest.approx(2 * 60 + 5 * 60 * (240 + 66) / (120 + 66))
    for part in PARTS[4:-1]:
        clock.finish(part, 60.0)
    assert clock.finish("export", 1.0) == "11 of 11 parts"
    assert clock.left() == 0
    assert "data" in clock.table()
    assert clock.table().count("done before") == len(PARTS)


def test_no_other_package_named_scripts_comes_first() -> None:
    """A folder without `__init__.py` gives way to any installed package of its name."""
    found = find_spec("scripts")
    assert found is not None
    assert found.origin == str(ROOT / "scripts/__init__.py")


@pytest.mark.parametrize(
    ("recipe", "minutes", "agreed", "starts", "says"),
    [
        ("full", 15, False, True, ""),
        ("full", 50, False, True, "the short recipe about 10 min (another folder: scripts/quickstart.sh --short)"),
        ("full", 61, False, False, "  scripts/quickstart.sh --short\n  scripts/quickstart.sh x --yes"),
        ("full", 600, False, False, "about 10.0 hours"),
        ("full", 600, True, True, "the short recipe about 10 min"),
        ("short", 50, False, True, "about 50 min"),
        ("short", 90, False, False, "scripts/quickstart.sh x --short --yes"),
        ("short", 90, True, True, "about 1.5 hours"),
        ("smoke", 600, False, True, ""),
    ],
)
def test_hours_are_never_started_unasked(recipe: str, minutes: int, agreed: bool, starts: bool, says: str) -> None:
    words, start = advice(60.0 * minutes, 600.0, RECIPES[recipe], "x", agreed)
    assert start is starts
    assert says in words
    assert bool(words) is (minutes > 40 and recipe != "smoke")


def test_a_slow_machine_ends_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Probe(encoder=0.2, step=31.0, answer=0.2, busy=1.0, arithmetic="float32")
    monkeypatch.setattr(quickstart_time, "measured", lambda pool, processes: slow)
    quick = quickstart.Quickstart(tmp_path / "run", RECIPES["full"])
    with pytest.raises(SystemExit, match=r"scripts/quickstart\.sh --short"):
        quick.plan(agreed=False)
    assert not (tmp_path / "run" / "plan.json").exists()
    quick = quickstart.Quickstart(tmp_path / "run", RECIPES["full"])
    quick.plan(agreed=True)
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["recipe"] == "full"
    quick.close()


def test_parts_say_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = quickstart.Quickstart(tmp_path / "run", RECIPES["full"])
    quick.clock = Clock(dict.fromkeys(PARTS, 100.0), set())
    output = quick.outputs()["data"]
    output.parent.mkdir()
    quick.part("data", output.touch)
    assert "[data] 1 s; 1 of 11 parts, about" in capsys.readouterr().out
    quick.part("data", lambda: pytest.fail("done twice"))
    assert "done before" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="ended without making"):
        quick.part("export", lambda: None)


def test_a_folder_keeps_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quickstart_time.remember(tmp_path / "plan.json", RECIPES["short"], QUICK)
    monkeypatch.setattr(sys, "argv", ["quickstart.py", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"holds the recipe 'short': go on with .* --short"):
        quickstart.main()
    assert quickstart.default_folder("full") == Path("runs/quickstart")
    assert quickstart.default_folder("short") != quickstart.default_folder("full")


@pytest.mark.parametrize("name", ["full", "short", "smoke"])
@pytest.mark.parametrize("stage", STAGES)
def test_recipes_compose_and_look_where_they_are_told(name: str, stage: str) -> None:
    register()
    recipe = RECIPES[name]
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir().resolve())):
        words = [f"experiment=quickstart_{stage}", "run.dir=/elsewhere/x", *recipe.overrides(stage)]
        here = to_stage_config(compose(stage, words))
        there = to_stage_config(compose(stage, [*words, "data.root=/q"]))
    assert here.trainer.max_steps == recipe.steps.get(stage, settings(stage)["max_steps"])
    assert recipe.share(stage, "step") == here.trainer.max_steps / settings(stage)["max_steps"]
    # The place of the run moves nothing but the run.
    once = stage in recipe.encoded_once
    assert here.data.encoder_cache == ("runs/quickstart/encoder-cache" if once else None)
    assert there.data.encoder_cache == ("/q/encoder-cache" if once else None)
    for cfg, root in ((here, "runs/quickstart/"), (there, "/q/")):
        own = [s for source in cfg.data.sources.values() for s in source.shards if "starter" not in s]
        assert own
        assert all(shard.startswith(f"{root}data/") for shard in own)
        assert cfg.model.checkpoint in (None, f"{root}pretrain", f"{root}sft")


@pytest.mark.parametrize("items", [4, 40, None])
def test_the_bound_of_a_recipe_holds_for_held_out_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, items: int | None
) -> None:
    (tmp_path / "data").mkdir()
    for end in ("", ".index.parquet"):
        (tmp_path / "data" / f"dpo-test.tar{end}").symlink_to(ROOT / f"data/starter/preferences-test.tar{end}")
    asked: list[int] = []

    def count(model: Any, reference: Any, data: Any, batches: int) -> dict[str, Any]:
        asked.append(sum(len(data.plan.batch(k)) for k in range(batches)))
        return {}

    processor = SimpleNamespace(tokenizer=load_tokenizer("builtin:nano"))
    monkeypatch.setattr(quickstart, "loaded", lambda checkpoint: (None, processor))
    monkeypatch.setattr("qa_train.preferences.pair_accuracy.pair_accuracy", count)
    quickstart.preference_scores(tmp_path, items)
    whole = load_index(str(tmp_path / "data" / "dpo-test.tar")).table.num_rows
    assert asked == [items or whole]
    assert whole > 40


def finished_run(folder: Path, recipe: str = "full") -> None:
    """A run in which every part took what ``Clock`` says for QUICK."""
    quickstart_time.remember(folder / "plan.json", RECIPES[recipe], QUICK)
    seconds = expected(QUICK, RECIPES[recipe], 2)
    (folder / "seconds.json").write_text(json.dumps({"install": 50.0, **seconds}))
    for stage in STAGES:
        (folder / stage).mkdir()
        steps = COSTS[stage]["step"] * QUICK.step
        rows = [{"step": i, "seconds": steps / 10} for i in range(10)] + [{"step": 10, "eval/x": 1.0}]
        (folder / stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_costs_come_back_from_a_run(tmp_path: Path) -> None:
    finished_run(tmp_path)
    found = calibrate(tmp_path)
    assert list(found) == list(PARTS)
    again = {part: sum(n * getattr(QUICK, unit) for unit, n in units.items()) for part, units in found.items()}
    assert again == pytest.approx(expected(QUICK, RECIPES["full"], 2), rel=0.01)
    assert found["sft"] == pytest.approx(COSTS["sft"], rel=0.01)


def test_only_a_whole_run_calibrates(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not that of a full run"):
        calibrate(tmp_path)
    finished_run(tmp_path)
    seconds = json.loads((tmp_path / "seconds.json").read_text())
    del seconds["dpo"]
    (tmp_path / "seconds.json").write_text(json.dumps(seconds))
    with pytest.raises(ValueError, match="dpo is missing"):
        calibrate(tmp_path)


def test_the_probe_is_asked_for_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter([1.0, 3.0])

    def one() -> dict[str, Any]:
        return {"encoder": 0.1, "step": next(numbers), "answer": 0.1, "busy": 1.0, "arithmetic": "float32"}

    monkeypatch.setattr(quickstart_time, "probe", one)
    with ThreadPoolExecutor(1) as pool:
        assert quickstart_time.measured(pool, 2).step == 2.0


def test_the_probe_measures_the_model_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart_time, "_BUDGET_S", 0)
    found = quickstart_time.probe()
    assert found["arithmetic"] in ("bfloat16", "float32")
    assert found["busy"] >= 1
    # A step is dearer than a second of encoding, on any machine.
    assert 0 < found["encoder"] < found["step"] < 600


@pytest.mark.parametrize(("name", "targets"), [("full", True), ("short", False)])
def test_a_smaller_recipe_claims_no_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, targets: bool
) -> None:
    monkeypatch.setattr(quickstart_report, "write_report", lambda *_, **__: None)
    score = {"metric": "accuracy", "value": 50.0, "ci_low": 40.0, "ci_high": 60.0, "n": 10}
    names = (
        *quickstart_report.TARGETS, *quickstart_report.QUESTIONS, *quickstart_report.ANALYSIS, quickstart_report.DENIAL
    )  # fmt: skip
    (tmp_path / "eval").mkdir()
    for stage in quickstart_report.STAGES:
        (tmp_path / "eval" / f"{stage}.json").write_text(json.dumps(dict.fromkeys(names, score)))
    quick = SimpleNamespace(root=tmp_path, seconds={"data": 1.0}, recipe=RECIPES[name])
    results = json.loads(quickstart_report.write_results(quick).read_text())
    assert any("target" in row for row in results["metrics"]) is targets
    assert all("ci" in row for row in results["metrics"] if row["unit"] != "points")
    assert ("short" in results["title"]) is not targets
    assert any("not claimed" in note for note in results["notes"]) is not targets


def test_the_report_grows_with_the_parts(tmp_path: Path) -> None:
    quick = quickstart.Quickstart(tmp_path / "run", RECIPES["full"])
    quick.clock = Clock(dict.fromkeys(PARTS, 100.0), set())
    page = quick.root / "report.html"
    quick.report()
    assert "0 of 11 parts done, about 18 min left; next: data." in page.read_text()
    output = quick.outputs()["data"]
    output.parent.mkdir()
    quick.part("data", output.touch)
    shown = page.read_text()
    assert "1 of 11 parts done" in shown
    assert "next: untrained model" in shown
    for text in ("processor", "instruction sets", "torch", "commit", "date", f"scripts/quickstart.sh {quick.root}"):
        assert text in shown, text
    # A first training, and the first evaluation.
    run = quick.root / "pretrain"
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": i, "loss": 3.0 - i}) + "\n" for i in range(3)))
    (run / "config.yaml").write_text("stage: pretrain\nrun: {seed: 7}\n")
    score = {"metric": "accuracy", "value": 50.0, "ci_low": 40.0, "ci_high": 60.0, "n": 10}
    names = (*quickstart_report.TARGETS, *quickstart_report.QUESTIONS, *quickstart_report.ANALYSIS)
    (quick.root / "eval").mkdir()
    (quick.root / "eval" / "before.json").write_text(json.dumps(dict.fromkeys(names, score)))
    quick.report()
    shown = page.read_text()
    assert "not measured after pretrain" in shown
    assert 'class="badge missed"' not in shown
    assert "<dt>seed</dt><dd>7</dd>" in shown
    assert '"name":"pretrain"' in shown
    assert not (quick.root / "results.json").exists()
    # Something else of that name is left alone, and stops nothing.
    page.write_text("mine")
    quick.report()
    assert page.read_text() == "mine"
    quick.close()


def test_the_report_follows_a_long_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart, "REPORT_S", 0.05)
    quick = quickstart.Quickstart(tmp_path / "run", RECIPES["full"])
    quick.clock = Clock(dict.fromkeys(PARTS, 95.5), set())  # 17.5 min, and half a second
    page, output = quick.root / "report.html", quick.outputs()["pretrain"]

    def text_of(path: Path) -> str:
        return path.read_text() if path.is_file() else ""

    def train() -> None:
        output.parent.mkdir()
        rows = (json.dumps({"step": i, "loss": 3.0 - i}) + "\n" for i in range(3))
        (output.parent / "metrics.jsonl").write_text("".join(rows))
        until = time.monotonic() + 60
        # The curves so far; and what this part has taken is no longer left.
        while not ('"name":"pretrain"' in (shown := text_of(page)) and "about 18 min left" not in shown):
            assert time.monotonic() < until, "no report while the part goes on"
            time.sleep(0.05)
        assert "0 of 11 parts done, about 17 min left; now: pretrain." in shown
        # A part that takes longer than planned takes nothing from the others.
        quick.report("pretrain", 150.0)
        shown = text_of(page)
        assert "about 16 min left; now: pretrain." in shown
        assert "<b>2 min 30 s</b>so far" in shown
        output.touch()

    quick.part("pretrain", train)
    assert "1 of 11 parts done" in page.read_text()
    quick.close()


@pytest.mark.parametrize(("stage", "more"), [("before", 0), ("pretrain", 0), ("sft", 0), ("dpo", 5)])
def test_what_is_measured_stands_in_the_experiments(stage: str, more: int, tmp_path: Path) -> None:
    """Every stage answers the same sets; the last one five more, which are measured once."""
    sets, before = (quickstart.evaluation_sets(tmp_path, each) for each in (stage, "before"))
    assert list(sets.items())[: len(before)] == list(before.items())
    assert len(sets) == len(before) + more
    assert [*sets] == list(quickstart_report.TITLES.values())[: len(sets)]
    assert {*quickstart_report.NOTES, *quickstart_report.QUESTIONS, *quickstart_report.ANALYSIS} <= before.keys()
    made = {path for each in sets.values() for path in each.shards if path.startswith(str(tmp_path))}
    assert made == {f"{tmp_path}/data/{name}-test.tar" for name in ("chat", "dpo")}
    assert all(Path(path).is_file() for each in sets.values() for path in each.shards if path not in made)
