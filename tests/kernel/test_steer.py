# SPDX-License-Identifier: GPL-2.0-or-later
"""Receive flow deliver and a rule on an installed kernel.

The machine boots without KVM, so it tells what goes where, not how fast. FASTSOCKET_VM_CPUS=24
gives it more CPUs than continuous integration has time for. Debian 12's own kernel has no
IP_LOCAL_PORT_RANGE: there the connect hooks give the ports.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).parents[2]
CPUS = int(os.environ.get("FASTSOCKET_VM_CPUS", "4"))
LIMIT_S = 900


def kernel_image() -> Path:
    """Return the newest installed kernel whose modules have veth."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is missing")
    if not (Path(sys.executable).parent / "vng").exists():
        pytest.skip("virtme-ng is missing")
    for image in sorted(Path("/boot").glob("vmlinuz-*"), reverse=True):
        version = image.name.removeprefix("vmlinuz-")
        if (Path("/lib/modules") / version / "kernel/drivers/net/veth.ko").exists():
            return image
    pytest.skip("no kernel with veth is installed (package linux-image-amd64)")


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Boot the machine once, and return what the guest found."""
    image = kernel_image()
    shared = tmp_path_factory.mktemp("guest")
    guest = (
        f"PYTHONPATH={ROOT}/src {sys.executable} {ROOT}/tests/kernel/steer_guest.py "
        f"{shared}/result.json"
    )
    machine = ["--disable-kvm", "--force-9p", "--cpus", str(CPUS), "--memory", "2G"]
    command = [str(Path(sys.executable).parent / "vng"), *machine]
    command += ["-r", str(image), "--rwdir", str(shared), "--exec", guest]
    # vng starts its parts by name.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PATH": path},
    )
    result = shared / "result.json"
    assert result.exists(), done.stdout[-2000:] + done.stderr[-2000:]
    found: dict[str, Any] = json.loads(result.read_text())
    assert "error" not in found, found["error"]
    assert found["cpus"] == CPUS
    return found


def test_answers_come_in_where_the_connection_was_opened(answer: dict[str, Any]) -> None:
    assert answer["rfd"]["mode"] == "native"
    assert answer["rfd"]["packets"] > 3 * CPUS
    assert answer["rfd"]["percent"] >= 99.9
    assert answer["stock"]["percent"] < 75  # one in four, and chance


def test_a_rule_uses_all_cpus(answer: dict[str, Any]) -> None:
    exits = answer["hash"]["exits"]
    assert exits["redirected"] > CPUS
    assert not exits["unreachable"] + exits["no_cpu"] + exits["unfinished"]
    assert len(answer["hash"]["cpus"]) > CPUS // 2
