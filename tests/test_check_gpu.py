"""The script for a new GPU, on the CPU: its short checks pass, a wrong kernel fails, what cannot be checked says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from qa_train.model.layers import attention
from tests import by_path
from tests.by_path import SCRIPTS


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SCRIPTS)
    from benchmark import twins

    # One layer, a sixteenth of the width: what is checked here are the checks.
    monkeypatch.setitem(twins.SIZES, "tiny", twins._scaled(16, 1, 1100))
    return by_path.script("check_gpu")


@pytest.fixture
def timings(script: Any) -> Any:
    """The part of the script that measures."""
    return sys.modules["gpu_timings"]


def test_attention_passes_and_a_wrong_kernel_fails(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert script.one("attention", "cpu")["ok"] is True
    right = attention._one_by_one

    def wrong(query: torch.Tensor, *rest: Any) -> torch.Tensor:
        out = right(query, *rest)
        # One document sees another, in the path that is judged alone.
        return out if out.dtype == torch.float64 else torch.cat([out[:, :30] + 0.01, out[:, 30:]], 1)

    monkeypatch.setattr(attention, "_one_by_one", wrong)
    assert script.one("attention", "cpu")["ok"] is False


@pytest.mark.parametrize(("seconds", "ok"), [([9, 1, 1, 5], True), ([9, 1.4, 1, 1], True), ([9, 1.6, 1, 1], False)])
def test_answers_that_are_slow_at_new_lengths_fail(
    seconds: list[float], ok: bool, script: Any, timings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round that warms up does not count, and neither does cuDNN, which is measured for comparison."""
    waiting = iter(seconds)
    monkeypatch.setattr(timings, "decode_seconds", lambda model, rows, tokens: next(waiting))
    assert script.one("decode", "cpu")["ok"] is ok
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("name", ["attention", "liger"])
def test_float32_is_not_rounded_to_tf32(name: str, script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    found: list[bool] = []
    look = lambda device: found.extend([torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32]) or {}  # noqa: E731
    monkeypatch.setitem(script.CHECKS, name, look)
    script.one(name, "cpu")
    assert found == [False, False]


def test_answers_are_timed(script: Any) -> None:
    found = script.one("decode", "cpu")
    assert min(found["tiny_new_ms"], found["tiny_again_ms"], found["tiny_cudnn_new_ms"]) > 0


def test_steps_are_timed_by_what_is_recomputed_and_a_failure_ends_no_other(
    script: Any, timings: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(timings, "KERNELS", ("plain", "liger"))
    right = partial(timings.step_times, rounds=1)
    monkeypatch.setattr(timings, "step_times", right)

    def wrong(model: Any, *rest: Any) -> Any:
        if model._chosen["llm"] == "selective":
            raise torch.OutOfMemoryError("no room")
        found = right(model, *rest)
        return found | {"norm": found["norm"] * (1.1 if model._chosen["llm"] == "full" else 1)}

    modes = ("none", "selective", "full")
    found = script.one("steps", "cpu")
    assert found["ok"] is True
    assert len({found[f"tiny plain {mode}"]["norm"] for mode in modes}) == 1
    assert all(found[f"tiny plain {mode}"]["ms"] > 0 for mode in modes)
    assert found["tiny liger"]["ok"] is None
    monkeypatch.setattr(timings, "step_times", wrong)
    capsys.readouterr()
    found = script.one("steps", "cpu")
    assert found["ok"] is False
    assert [found[f"tiny plain {mode}"]["ok"] for mode in modes] == [True, None, False]
    # What there is when the process is ended.
    assert json.loads(capsys.readouterr().out.splitlines()[0])["tiny plain none"]["ms"] > 0
    monkeypatch.setattr(timings, "STEPS_S", -1)
    assert script.one("steps", "cpu")["left_out"] == [f"tiny plain {mode}" for mode in modes]


def test_what_was_found_before_a_check_was_ended_is_kept(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "check.py"
    # Libraries print lines that look like it.
    shown = """print('{"a": 1, "ok": false}')\nprint({"loss": 1.2})\nprint('{"loss": 1.2}', flush=True)\n"""
    program.write_text(f"import time\n{shown}time.sleep(60)")
    monkeypatch.setattr(script, "__file__", str(program))
    monkeypatch.setattr(script, "LIMIT_S", 3)
    assert script.apart("machine", "cpu") == {"a": 1, "ok": False, "why": "not done after 3 s"}
    program.write_text(f"import os\n{shown}os.abort()")
    found = script.apart("machine", "cpu")
    assert found["a"] == 1
    assert found["why"].startswith("ended with -6")


def test_what_cannot_be_checked_here_says_why(script: Any) -> None:
    found = script.one("liger", "cpu")
    assert found["ok"] is None
    assert "CUDA" in found["why"] or "not installed" in found["why"]


def test_commands_keep_packages_that_were_brought_along(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, str]] = []
    done = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(script.subprocess, "run", lambda *_, env, **__: seen.append(env) or done)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    script.command("doctor")
    monkeypatch.delenv("PYTHONPATH")
    script.command("doctor")
    assert [env["PYTHONPATH"].split(os.pathsep)[1:] for env in seen] == [[str(tmp_path)], []]


@pytest.mark.slow
def test_checks_run_apart_and_their_results_are_in_the_file(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    words = [sys.executable, str(SCRIPTS / "check_gpu.py"), "--device", "cpu", "--out", str(out)]
    done = subprocess.run([*words, "--checks", "half,answers"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    checks = json.loads(out.read_text())["checks"]
    assert [checks[name]["ok"] for name in ("half", "answers")] == [True, True]
    assert checks["answers"]["equal"] == checks["answers"]["of"] == 20
    refused = subprocess.run([*words, "--checks", "sound"], capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "no check sound; there are machine" in refused.stderr
