# SPDX-License-Identifier: GPL-2.0-or-later
"""The list of Debian packages, and the installer's way with it."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tools import check_paths, packages

pytestmark = pytest.mark.unit

LIST = """# a comment
#: build
gcc
python3-venv ? ensurepip
nothing-such ? no.such.module
#: run
libbpf1
"""


def test_kinds_are_joined_in_order() -> None:
    assert packages.wanted(LIST, ["run", "build"]) == ["libbpf1", "gcc", "nothing-such"]


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match=r"no kind 'nope' in the list; it has build, run"):
        packages.wanted(LIST, ["nope"])


def test_the_list_itself_has_the_kinds_that_the_makefile_asks_for() -> None:
    names = packages.wanted(packages.LIST.read_text(), ["build", "run", "test"])
    assert {"gcc", "clang-14", "libbpf-dev", "libbpf1", "nginx-light", "haproxy"} <= set(names)
    assert len(names) == len(set(names))


def test_what_is_not_installed_is_missing() -> None:
    assert packages.missing(["no-such-package", "libc6-dev"]) == ["no-such-package"]


def test_without_root_the_packages_are_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(packages.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(packages, "missing", lambda names: ["wrk", "haproxy"])
    assert packages.main(["test"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "sudo apt-get install -y wrk haproxy" in error


def test_without_apt_the_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    assert packages.main(["run"]) == 1
    assert (
        "this host has no apt-get; install the equivalents of: libbpf1" in capsys.readouterr().err
    )


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A policy-rc.d of our own, and an apt-get that records whether the policy was there."""
    path = tmp_path / "policy-rc.d"
    monkeypatch.setattr(packages, "POLICY", path)
    monkeypatch.setattr(packages.os, "geteuid", lambda: 0)
    monkeypatch.setattr(packages, "missing", lambda names: ["wrk"])
    return path


@pytest.mark.parametrize("own", ["", "#!/bin/sh\nexit 0\n"])
def test_daemons_do_not_start_while_packages_are_installed(
    policy: Path, monkeypatch: pytest.MonkeyPatch, own: str
) -> None:
    if own:
        policy.write_text(own)
    seen = []

    def install(names: Sequence[str]) -> int:
        seen.append(policy.read_text())
        return 0

    monkeypatch.setattr(packages, "_install", install)
    assert packages.main(["test"]) == 0
    assert seen == [own or packages.POLICY_TEXT]
    assert policy.exists() is bool(own)


def test_the_policy_goes_when_the_installation_breaks_off(
    policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(names: Sequence[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(packages, "_install", broken)
    with pytest.raises(KeyboardInterrupt):
        packages.main(["test"])
    assert not policy.exists()


@pytest.mark.parametrize(
    ("line", "hits"),
    [
        (b"see /usr/include/bpf", 0),
        (b"open('/proc/self/maps')", 0),
        (b"a/root/b ./root/x", 0),
        (b"$HOME/root/x and ${TOP}/root/y", 0),
        (b"cd " + b"/wo" + b"rk/main", 1),
        (b"PATH=" + b"/hom" + b"e/me/bin:" + b"/roo" + b"t/x", 2),
    ],
)
def test_private_paths_are_found(line: bytes, hits: int) -> None:
    assert len(check_paths.find(b"first\n" + line)) == hits
