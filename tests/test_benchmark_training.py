"""A short run of the training benchmark: equal first steps and the FLOPs of both paths. No times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import benchmark_dpo
import benchmark_training
from benchmark import clips, twins
from benchmark.measure import first_step, micro_batches
from benchmark.report import executed_flops, six_n_flops

from qa_train.model.flops import Regime, Shapes, Work
from tests.model.test_flops import QWEN2_AUDIO

pytestmark = pytest.mark.slow


def test_the_usual_estimate_takes_six_operations_a_weight() -> None:
    dense = 6 * (QWEN2_AUDIO.encoder.weights * 250 + (QWEN2_AUDIO.llm_weights + 4096 * 156032) * 173)
    assert six_n_flops(QWEN2_AUDIO, Work([500], [173], 14), Regime()) == dense


@pytest.fixture(autouse=True)
def _size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(twins.SIZES, "test", twins._scaled(16, 1, 1100))
    monkeypatch.setattr("benchmark.measure._CPU_PRODUCT", 256)


def run(folder: Path, *options: str) -> dict:
    out = folder / "results.json"
    benchmark_training.main(["--size", "test", "--clips", "2", "--rounds", "1", "--out", str(out), *options])
    return json.loads(out.read_text())


@pytest.mark.slow
def test_every_regime_does_the_same_work_with_fewer_flops(tmp_path: Path) -> None:
    results = run(tmp_path, "--data", "vocalsound", "--batch-sizes", "1", "2", "--trace", str(tmp_path / "trace.txt"))
    assert [cell["regime"] for cell in results["cells"]] == list(twins.REGIMES)
    for cell in results["cells"]:
        ours, stock = cell["ours"], cell["stock"]
        assert ours["loss"] == pytest.approx(stock["loss"], rel=1e-5)
        assert ours["gradient_norm"] == pytest.approx(stock["gradient_norm"], rel=1e-4)
        assert 1 <= ours["executed_over_useful"] <= 1.03
        assert ours["encoder_padding_frames"] == 0
        assert ours["llm_padding_share"] == 0
        assert stock["encoder_padding_frames"] == 2 * 1500 - cell["frames"]
        assert cell["flop_ratio"] > 2
        # 4 s clips in a model of 8.4 B, without any padding of rows.
        assert 1.4 < cell["flop_ratio_8b"] < 2.8
    assert len(results["sweeps"]) == 2
    assert all(tried["s"] > 0 for sweep in results["sweeps"] for tried in sweep["seconds"])
    assert "aten::addmm" in (tmp_path / "trace.txt").read_text()


def test_gpu_settings_on_the_cpu(tmp_path: Path) -> None:
    options = ["--data", "mixed", "--regimes", "full", "--dtype", "bfloat16", "--checkpointing", "on"]
    (cell,) = run(tmp_path, *options, "--batch-sizes", "2", "--peak-tflops", "1")["cells"]
    assert cell["ours"]["settings"] == {"size": 2, "checkpointing": True}
    assert set(cell["ours"]["useful_mfu"]) == {"measured", "given"}
    # The second forward of the layers is executed, and not useful.
    assert 1.2 < cell["ours"]["executed_over_useful"] < 1.4


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("regime", twins.REGIMES)
def test_the_formula_for_executed_flops_agrees_with_the_counter(regime: str, checkpointing: bool) -> None:
    bench = benchmark_training.Benchmark(benchmark_training.parse(["--size", "test"]))
    examples = clips.make_examples("mixed", 3, bench.processor.tokenizer)
    shapes = Shapes.of(twins.make_config("test", bench.processor.tokenizer))
    for side in twins.make_sides("test", regime, bench.processor, "cpu", torch.float32):
        benchmark_training.set_checkpointing(side, checkpointing)
        batches = micro_batches(side, examples, 2, "cpu")
        counted = first_step(side, batches, 50, count=True).flops
        expected = executed_flops(side.name, shapes, batches, twins.REGIMES[regime], checkpointing=checkpointing)
        assert expected == pytest.approx(counted, rel=0.02), side.name


def test_flop_ratios_of_the_released_model_by_formula(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark_training.main(["--size", "8b", "--formula", "--regimes", "full", "--batch-sizes", "1", "8"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    found = {corpus: (float(one), float(eight)) for corpus, one, eight in rows}
    assert found["audiocaps"] == (1.43, 1.43)  # all rows have one length
    expected = {"librispeech": 1.53, "commonvoice": 2.23, "vocalsound": 2.52, "mixed": 2.16}
    for corpus, ratio in expected.items():
        assert found[corpus][1] == pytest.approx(ratio, rel=0.06)
        assert found[corpus][0] < found[corpus][1]


def test_unequal_work_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = clips.our_batch

    def forgetful(*args: object) -> dict[str, torch.Tensor]:
        batch = honest(*args)
        batch["input_features"] = batch["input_features"] * 0.5
        return batch

    monkeypatch.setattr(twins, "our_batch", forgetful)
    results = run(tmp_path, "--data", "vocalsound", "--regimes", "full", "--batch-sizes", "2")
    assert results["cells"] == []
    assert "FAILED: full, vocalsound: RuntimeError" in (shown := capsys.readouterr().out)
    assert "do not do the same work" in shown


def test_cells_without_time_are_listed(tmp_path: Path) -> None:
    results = run(tmp_path, "--minutes", "0", "--regimes", "full", "--data", "mixed", "audiocaps")
    assert results["cells"] == []
    assert results["left_out_for_time"] == [["full", "mixed"], ["full", "audiocaps"]]


@pytest.mark.parametrize(
    ("corpus", "seconds"), [("librispeech", 12.3), ("commonvoice", 5.0), ("audiocaps", 10.0), ("vocalsound", 4.0)]
)
def test_length_distributions(corpus: str, seconds: float) -> None:
    drawn = clips.durations(corpus, 400, seed=0)
    assert mean(length for length, _ in drawn) == pytest.approx(seconds, rel=0.02)
    few = clips.durations(corpus, 8, seed=1)
    assert mean(length for length, _ in few) == pytest.approx(seconds, rel=0.05)
    assert drawn != sorted(drawn) or corpus == "audiocaps"


def test_a_pair_costs_less_and_starts_at_the_same_loss(tmp_path: Path) -> None:
    """The script itself refuses log-probabilities that differ, or a first loss that is not ln 2."""
    out = tmp_path / "dpo.json"
    benchmark_dpo.main(["--size", "test", "--data", "commonvoice", "--pairs", "2", "--rounds", "1", "--out", str(out)])
    (cell,) = json.loads(out.read_text())["cells"]
    flops = cell["flops_per_pair"]
    assert flops["stock"] > 3 * flops["ours, precomputed"]
    # A forward more than forward and backward together: a third.
    assert flops["ours, live"] == pytest.approx(4 / 3 * flops["ours, precomputed"], rel=0.01)


def test_a_cell_that_does_not_fit_takes_no_other_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = benchmark_training.Benchmark.cell

    def full(self: Any, sides: Any, optimizer: Any, regime: str, corpus: str, peak: float) -> Any:
        if corpus == "audiocaps":
            raise torch.OutOfMemoryError("no room for this\nand a trace")
        return cell(self, sides, optimizer, regime, corpus, peak)

    monkeypatch.setattr(benchmark_training.Benchmark, "cell", full)
    options = ["--data", "audiocaps", "vocalsound", "--regimes", "frozen-llm", "--batch-sizes", "2"]
    results = run(tmp_path, *options)
    assert results["out_of_memory"] == [["frozen-llm", "audiocaps", "no room for this"]]
    assert [found["corpus"] for found in results["cells"]] == ["vocalsound"]


def test_a_cell_that_fails_does_not_cost_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    check = benchmark_training.check_first_step

    def first_fails(first: Any, tolerance: Any) -> None:
        checked.append("step")
        if len(checked) == 1:
            raise RuntimeError("the first step's loss is 2 with ours and 3 with stock")
        check(first, tolerance)

    monkeypatch.setattr(benchmark_training, "check_first_step", first_fails)
    out = tmp_path / "results.json"
    words = ["--size", "test", "--clips", "1", "--rounds", "1", "--batch-sizes", "1", "--data", "vocalsound"]
    assert benchmark_training.main([*words, "--regimes", "frozen-encoder", "full", "--out", str(out)]) == 1
    results = json.loads(out.read_text())
    assert [cell["regime"] for cell in results["cells"]] == ["full"]
    ((regime, corpus, why),) = results["failed"]
    assert (regime, corpus) == ("frozen-encoder", "vocalsound")
    assert why == "RuntimeError: the first step's loss is 2 with ours and 3 with stock"


@pytest.mark.slow
def test_the_scripts_of_a_gpu_start_where_nothing_is_installed(tmp_path: Path) -> None:
    """As on a bare machine: from any folder, without the package among the installed ones."""
    program = tmp_path / "start.py"
    program.write_text("""
import gc, os, runpy, sys

gc.disable()
root, *scripts = sys.argv[1:]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
bare = [path for path in sys.path if path != root]
import peft, torch, transformers.models.qwen2_audio.modeling_qwen2_audio  # the machine has them

for script in scripts:
    if not os.fork():
        sys.path, sys.argv = [os.path.dirname(script), *bare], [script, "--help"]
        runpy.run_path(script, run_name="__main__")
    assert os.wait()[1] == 0, script
""")
    root = Path(__file__).parent.parent
    scripts = [str(root / "scripts" / name) for name in ("check_gpu.py", "benchmark_training.py")]
    done = subprocess.run(
        [sys.executable, str(program), str(root), *scripts],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("--device") >= len(scripts)
