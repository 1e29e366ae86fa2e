# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules of tests/conftest.py, tried on small projects of their own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

CONFTEST = Path(__file__).parents[1] / "conftest.py"
KINDS = ("unit", "golden", "netns", "apps", "kernel")
UNIT = "@pytest.mark.unit\ndef test_u():\n    assert True\n"
APPS = "@pytest.mark.apps\ndef test_a():\n    assert True\n"


def run(
    folder: Path, source: str, *args: str, ci: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run pytest over one test file with our conftest, on a machine that has an nginx."""
    shutil.copy(CONFTEST, folder / "conftest.py")
    markers = "\n  ".join(KINDS)
    (folder / "pytest.ini").write_text(f"[pytest]\ntestpaths = .\nmarkers =\n  {markers}\n")
    (folder / "test_it.py").write_text(f"import pytest\n{source}")
    (folder / "nginx").write_text("#!/bin/sh\n")
    (folder / "nginx").chmod(0o755)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *args],
        cwd=folder,
        env={"PATH": str(folder), "CI": "true" if ci else "false"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_counts_and_skips_are_printed(tmp_path: Path) -> None:
    skip = "@pytest.mark.netns\ndef test_n():\n    pytest.skip('no veth here')\n"
    done = run(tmp_path, UNIT + skip)
    assert done.returncode == 0
    assert "unit: 1 ran, 0 skipped, 1 collected" in done.stdout
    assert "netns: 0 ran, 1 skipped, 1 collected" in done.stdout
    assert "skipped netns test_it.py::test_n: no veth here" in done.stdout
    assert "1 passed, 1 skipped" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("marks", ["", "@pytest.mark.unit\n@pytest.mark.apps\n"])
def test_a_test_has_exactly_one_kind(tmp_path: Path, marks: str) -> None:
    done = run(tmp_path, f"{UNIT}{marks}def test_odd():\n    pass\n")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "test_it.py::test_odd" in done.stderr


@pytest.mark.parametrize(("args", "ci"), [(["--require-kinds"], False), ([], True)])
def test_a_supported_kind_must_run(tmp_path: Path, args: list[str], ci: bool) -> None:
    done = run(tmp_path, UNIT, *args, ci=ci)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "FAILED: this machine supports apps tests, but none ran" in done.stdout


def test_a_kind_whose_tests_were_all_skipped_did_not_run(tmp_path: Path) -> None:
    skip = "@pytest.mark.apps\ndef test_s():\n    pytest.skip('no port')\n"
    done = run(tmp_path, UNIT + skip, ci=True)
    assert "this machine supports apps tests, but none ran" in done.stdout


def test_kinds_run_in_order_and_nothing_supported_is_missed(tmp_path: Path) -> None:
    done = run(tmp_path, APPS + UNIT, "-v", ci=True)
    assert done.stdout.index("test_u PASSED") < done.stdout.index("test_a PASSED")
    assert "supports unit" not in done.stdout
    assert "supports apps" not in done.stdout
    assert "supports kernel" not in done.stdout  # no qemu on its PATH


@pytest.mark.parametrize("args", [["-k", "test_u"], ["-m", "unit"], ["test_it.py"]])
def test_a_selection_is_not_held_to_it(tmp_path: Path, args: list[str]) -> None:
    assert run(tmp_path, UNIT + APPS, *args, ci=True).returncode == 0
