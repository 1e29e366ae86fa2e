# SPDX-License-Identifier: GPL-2.0-or-later
"""Build hook of hatchling: compiles native/ and puts the compiled parts into the wheel.

The wheel holds no Python extension, so one wheel serves every Python of the platform. An editable
install builds in place, where :mod:`fastsocket.native` looks for the parts.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

__all__ = ["NativeBuildHook"]

# Tried in this order, as in native/Makefile; none on the host means ziglang's clang from PyPI.
CLANGS = ("clang", "clang-14", "clang-16", "clang-19")
ZIGLANG = "ziglang==0.17.1"
IN_PLACE = Path("src/fastsocket/_native")


class NativeBuildHook(BuildHookInterface[Any]):
    """Runs `make -C native` for wheels and editable installs; the sdist holds sources only."""

    PLUGIN_NAME = "custom"
    _aside: tempfile.TemporaryDirectory[str] | None = None

    def dependencies(self) -> list[str]:
        """Return what pip must fetch for this build: a clang where the host has none."""
        return [] if _host_clang() else [ZIGLANG]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and hand the results to hatchling.

        Raises:
            SystemExit: make, gcc or a header is missing; the message names the packages.
        """
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        if version == "editable":
            _make(root, root / IN_PLACE)
            return
        # Built aside, so that no stale object of an earlier build gets into the wheel.
        self._aside = tempfile.TemporaryDirectory(prefix="fastsocket-build-")
        out = Path(self._aside.name)
        _make(root, out)
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
        for part in sorted(out.iterdir()):
            build_data["force_include"][str(part)] = f"fastsocket/_native/{part.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was built aside."""
        if self._aside:
            self._aside.cleanup()


def _host_clang() -> str | None:
    return next((found for name in CLANGS if (found := shutil.which(name))), None)


def _make(root: Path, out: Path) -> None:
    settings = [f"-j{os.cpu_count() or 1}", f"OUT={out}"]
    if clang := _host_clang():
        settings.append(f"CLANG={clang}")
    else:
        # zig's name for the BPF target differs from clang's.
        settings += [f"CLANG={sys.executable} -m ziglang cc", "BPF_TARGET=bpfel-freestanding"]
    try:
        subprocess.run(["make", "-C", str(root / "native"), *settings], check=True)
    except FileNotFoundError:
        sys.exit("fastsocket: make is missing; on Debian: apt-get install make gcc libbpf-dev")
    except subprocess.CalledProcessError as error:
        sys.exit(
            f"fastsocket: the C parts did not compile (make: {error.returncode}); they need gcc, "
            "libc6-dev, libbpf-dev and, unless ziglang is used, clang-14"
        )
