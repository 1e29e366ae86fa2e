# SPDX-License-Identifier: GPL-2.0-or-later
"""Install the Debian packages of packages.txt that are missing (standard library only).

Called by the Makefile before the virtual environment exists: ``packages.py build run``. Quick when
nothing is missing. Only root installs; anybody else gets one line that names the packages. The
daemons among them are installed, not started: the tests start their own.
"""

import argparse
import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["main", "missing", "wanted"]

LIST = Path(__file__).resolve().parent.parent / "packages.txt"
POLICY = Path("/usr/sbin/policy-rc.d")
# deb-systemd-invoke and invoke-rc.d read 101 as "action forbidden by policy".
POLICY_TEXT = (
    "#!/bin/sh\n# Written by Fastsocket's make setup while it installs; safe to remove.\nexit 101\n"
)


def wanted(text: str, kinds: Iterable[str]) -> list[str]:
    """Return the package names under the given kinds whose condition holds on this host.

    Raises:
        ValueError: A kind is not in the list.
    """
    sections: dict[str, list[str]] = {}
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith("#:"):
            current = sections.setdefault(line[2:].strip(), [])
        elif line and not line.startswith("#"):
            name, _, module = (part.strip() for part in line.partition("?"))
            if not module or not _importable(module):
                current.append(name)
    names = []
    for kind in kinds:
        if kind not in sections:
            raise ValueError(f"no kind {kind!r} in the list; it has {', '.join(sections)}")
        names += sections[kind]
    return names


def missing(names: Iterable[str]) -> list[str]:
    """Return those of the Debian packages that are not installed."""
    names = list(names)
    query = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\\n", *names]
    listed = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
    installed = {line.split()[0] for line in listed if line.endswith(" installed")}
    return [name for name in names if name not in installed]


def main(argv: list[str] | None = None) -> int:
    """Install what is missing; return 0, or 1 with one line on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, prog="packages.py")
    parser.add_argument("kinds", nargs="+", help="sections of packages.txt, such as build or run")
    kinds = parser.parse_args(argv).kinds
    # The Makefile takes whatever python3 there is.
    if sys.version_info < (3, 11):  # noqa: UP036
        return _fail(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}")
    names = wanted(LIST.read_text(), kinds)
    if not (shutil.which("dpkg-query") and shutil.which("apt-get")):
        return _fail(f"this host has no apt-get; install the equivalents of: {' '.join(names)}")
    absent = missing(names)
    if not absent:
        return 0
    if os.geteuid() != 0:
        return _fail(
            "packages are missing and only root can install them; run: "
            f"sudo apt-get install -y {' '.join(absent)}"
        )
    print(f"installing {' '.join(absent)}", flush=True)
    with _daemons_held():
        return _install(absent)


def _install(names: list[str]) -> int:
    apt = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"]
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    # A stale index is no reason to stop: the install says it better, with the package's name.
    subprocess.run([*apt, "update"], env=quiet, stdout=subprocess.DEVNULL, check=False)
    command = [*apt, "install", "-y", "--no-install-recommends", *names]
    done = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = next((s for s in done.stderr.splitlines() if s.startswith("E:")), "see apt-get")
        return _fail(f"apt-get could not install {' '.join(names)}; {reason}")
    return 0


@contextlib.contextmanager
def _daemons_held() -> Iterator[None]:
    """Keep newly installed daemons from starting, without touching a policy of the host's own."""
    ours = not POLICY.exists() or POLICY.read_text(errors="replace") == POLICY_TEXT
    if ours:
        POLICY.write_text(POLICY_TEXT)
        POLICY.chmod(0o755)
    # SIGTERM and SIGHUP become exceptions, so that the policy goes also when make is stopped.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda caught, _frame: sys.exit(128 + caught))
    try:
        yield
    finally:
        if ours:
            POLICY.unlink(missing_ok=True)


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _fail(text: str) -> int:
    print(f"make setup: {text}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
