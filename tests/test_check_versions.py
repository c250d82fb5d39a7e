"""scripts/check_versions.py: what it reads of pytest, and an environment on top of this one."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.docs.test_pages import script

check = script("check_versions")

FILE = """from __future__ import annotations
import pytest, tenacity
def test_new(): assert tenacity.NEW
@pytest.mark.parametrize("x", [0, 1])
def test_old(x): assert x
def test_not_here(): pytest.skip("no")
"""


def test_its_tests_exist() -> None:
    assert [name for name in check.TESTS if not (check.ROOT / name).exists()] == []


@pytest.mark.slow
def test_another_version_is_tried_and_this_environment_is_left_alone(tmp_path: Path) -> None:
    wheel = tmp_path / "tenacity-99.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as made:
        made.writestr("tenacity/__init__.py", "NEW = True\n")
        made.writestr("tenacity-99.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tenacity\nVersion: 99.0\n")
        made.writestr("tenacity-99.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        made.writestr("tenacity-99.0.dist-info/RECORD", "")
    here = version("tenacity")
    python = check.make_environment(tmp_path / "venv", [str(wheel)])
    assert check.versions(python, ["tenacity", "torch"]) == {"tenacity": "99.0", "torch": version("torch")}
    line = [sys.executable, "-c", "import tenacity, importlib.metadata as m; print(m.version('tenacity'))"]
    assert subprocess.run(line, check=True, capture_output=True, text=True).stdout.split() == [here]
    (tmp_path / "test_one.py").write_text(FILE)
    (tmp_path / "test_two.py").write_text("import no_such_module\n")
    rows = check.run_tests(python, [str(tmp_path)], tmp_path / "report.xml")
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in rows.values()] == [
        {"passed": 0, "failed": 1, "skipped": 0}, {"passed": 2, "failed": 1, "skipped": 1}
    ]  # fmt: skip


def test_a_run_of_no_test_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text("<testsuites><testsuite tests='0'/></testsuites>")
    for report in ("report.xml", "none.xml"):
        with pytest.raises(ValueError, match="ran no test"):
            check.read_report(tmp_path / report)
