# SPDX-License-Identifier: GPL-2.0-or-later
"""The wheel is complete: it works in an empty environment, away from the checkout."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import click
import pytest

pytestmark = pytest.mark.apps

ROOT = Path(__file__).parents[2]
PARTS = (
    "libfsocket.so",
    "libfsocket-epoll.so",
    "libfsocket-plain.so",
    "libfsocket-plain-epoll.so",
    "select.bpf.o",
    "fastsocket-demo",
    "fastsocket-kv",
    "fastsocket-load",
)
STALE = "stale.bpf.o"


def clean_run(*command: str | Path, **where: Path) -> str:
    """Run without the paths of the checkout; return stdout."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in command],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        **where,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    clean_run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", out, cwd=ROOT)
    (path,) = out.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, sdist: Path) -> Path:
    """Built from the sdist alone, so that it proves the sdist complete as well."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.unpack_archive(sdist, folder)
    (source,) = folder.iterdir()
    # What an earlier build of other sources left in the tree must not get in.
    leftover = source / "src/fastsocket/_native" / STALE
    leftover.parent.mkdir()
    leftover.write_bytes(b"")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index"]
    clean_run(*pip, "-w", folder, source)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """The installed command; its dependencies come from the environment of the tests."""
    home = tmp_path_factory.mktemp("elsewhere") / "env"
    venv.create(home, with_pip=False, symlinks=True)
    (packages,) = home.glob("lib/python3.*/site-packages")
    # A plain path line: .pth files inside that folder (an editable install) are not followed.
    (packages / "dependencies.pth").write_text(f"{Path(click.__file__).parents[1]}\n")
    pip = [sys.executable, "-m", "pip", "--python", home / "bin/python", "install"]
    clean_run(*pip, "--no-deps", "--no-index", wheel)
    return home / "bin/fastsocket"


def test_the_wheel_holds_the_compiled_parts_and_its_platform(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    missing = [part for part in PARTS if f"fastsocket/_native/{part}" not in names]
    assert not missing
    assert wheel.name.split("-")[-1].startswith("linux_")
    assert any(name.endswith("licenses/LICENSE.LGPL-2.1") for name in names)
    assert any(name.endswith("data/share/man/man1/fastsocket.1") for name in names)


def test_the_wheel_holds_nothing_stale(wheel: Path) -> None:
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if STALE in name]


def test_the_sdist_holds_no_build_results(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = archive.getnames()
    assert any(name.endswith("native/Makefile") for name in names)
    assert not [name for name in names if "_native" in name or ".venv" in name]


def test_the_installed_command_works_elsewhere(command: Path, tmp_path: Path) -> None:
    assert "fastsocket" in clean_run(command, "--version", cwd=tmp_path)
    library = Path(clean_run(command, "lib", cwd=tmp_path).strip())
    assert library.name == "libfsocket.so"
    assert library.is_relative_to(command.parents[1]), "it found the checkout's library"


def test_the_compiled_parts_are_executable(command: Path) -> None:
    (native,) = command.parents[1].glob("lib/python3.*/site-packages/fastsocket/_native")
    assert os.access(native / "fastsocket-demo", os.X_OK)
    assert os.access(native / "fastsocket-load", os.X_OK)
