#!/usr/bin/env python
"""Try other versions of the libraries: those given, else the newest transformers and TRL.

A virtual environment in a temporary folder gets them on top of the packages of this one, which stay as they are; then
the tests that compare this code with the libraries run there. For every week, and before a version range is widened.

    python scripts/check_versions.py                                  newest transformers and TRL
    python scripts/check_versions.py transformers==5.24.0 [--tests tests/test_config.py ...]

Prints the versions and the result of every file; exit code 1 if one failed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("transformers", "trl")
# Ours against the libraries' own: logits, gradients, losses, optimizers, weights, templates, options, answers, servers.
TESTS = (
    "tests/model", "tests/train/test_dpo_parity.py", "tests/train/test_arithmetic.py", "tests/train/test_lora.py",
    "tests/train/test_optimizers.py", "tests/train/test_run_of_epochs.py", "tests/infer/test_generate.py",
    "tests/infer/test_other_servers.py", "tests/test_export.py", "tests/test_habits.py", "tests/test_config.py",
)  # fmt: skip

_TELL = """
import sys
from importlib.metadata import PackageNotFoundError, version
for name in sys.argv[1:]:
    try:
        print(version(name))
    except PackageNotFoundError:
        print("-")
"""


def make_environment(folder: Path, packages: list[str]) -> Path:
    """The interpreter of an environment in ``folder``: ``packages``, and else those of this environment."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    # Its own packages come first. pip takes the others as installed, and does not touch them.
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (site / "others.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--upgrade", *packages], check=True)
    return python


def versions(python: Path | str, names: list[str]) -> dict[str, str]:
    """Those that an interpreter imports; - for what it lacks."""
    told = subprocess.run([python, "-c", _TELL, *names], check=True, capture_output=True, text=True).stdout
    return dict(zip(names, told.split(), strict=True))


def run_tests(python: Path, tests: list[str], report: Path) -> dict[str, dict[str, float]]:
    """Per test file: how many tests passed, failed and were skipped, and seconds."""
    # As test.sh does.
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline",
        "TOKENIZERS_PARALLELISM": "false", "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    # A file that cannot be imported is one result among others.
    options = ["-q", "-p", "no:cacheprovider", "--continue-on-collection-errors", f"--junitxml={report}"]
    subprocess.run([python, "-m", "pytest", *options, *tests], cwd=ROOT, env=environment, check=False)
    return read_report(report)


def read_report(report: Path) -> dict[str, dict[str, float]]:
    """What pytest wrote, by file. ValueError if it ran nothing."""
    found: dict[str, dict[str, float]] = {}
    for case in ElementTree.parse(report).iter("testcase") if report.exists() else ():
        kinds = {child.tag for child in case}
        result = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        # A file that cannot be imported has no class.
        name = case.get("classname") or case.get("name") or "?"
        row = found.setdefault(name, {"passed": 0, "failed": 0, "skipped": 0, "seconds": 0.0})
        row[result] += 1
        row["seconds"] += float(case.get("time") or 0)
    if not found:
        raise ValueError("pytest ran no test (see above): give files of tests/ with --tests")
    return found


def main() -> int:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", default=list(PACKAGES), metavar="NAME[==VERSION]")
    parser.add_argument("--tests", nargs="+", default=list(TESTS), metavar="FILE")
    asked = parser.parse_args()
    names = [re.split(r"[\[<>=!~ ]", package)[0] for package in asked.packages]
    with tempfile.TemporaryDirectory(prefix="qa-train-versions-") as folder:
        python = make_environment(Path(folder) / "venv", asked.packages)
        here, tried = versions(sys.executable, names), versions(python, names)
        rows = run_tests(python, asked.tests, Path(folder) / "report.xml")
    print("\n| package | here | tried |\n|---|---|---|")
    for name in names:
        print(f"| {name} | {here[name]} | {tried[name]} |")
    print("\n| tests | passed | failed | skipped | seconds |\n|---|---:|---:|---:|---:|")
    for name, row in rows.items():
        print(f"| {name} | {row['passed']} | {row['failed']} | {row['skipped']} | {row['seconds']:.0f} |")
    return int(any(row["failed"] for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
