# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket nic` on emulated cards: e1000e and virtio-net, and a VLAN on a bond of both.

The machine boots an installed generic kernel without KVM, so it takes minutes rather than seconds.
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
CARD_MODULE = "kernel/drivers/net/ethernet/intel/e1000e"
CARDS = (
    "-netdev user,id=n0 -device e1000e,netdev=n0 "
    "-netdev tap,id=n1,queues=4,script=no,downscript=no "
    "-device virtio-net-pci,netdev=n1,mq=on,vectors=10"
)
LIMIT_S = 900


def kernel_image() -> Path:
    """Return an installed kernel that has the module of an emulated card."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is missing")
    if os.geteuid() != 0 or not Path("/dev/net/tun").exists():
        pytest.skip("a virtio card with several queues needs root and /dev/net/tun")
    if not (Path(sys.executable).parent / "vng").exists():
        pytest.skip("virtme-ng is missing")
    for image in sorted(Path("/boot").glob("vmlinuz-*")):
        version = image.name.removeprefix("vmlinuz-")
        if (Path("/lib/modules") / version / CARD_MODULE).is_dir():
            return image
    pytest.skip("no kernel with e1000e is installed (package linux-image-amd64)")


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Boot the machine once, and return what the guest found."""
    image = kernel_image()
    shared = tmp_path_factory.mktemp("guest")
    guest = (
        f"PYTHONPATH={ROOT}/src:{ROOT}/tests/netns {sys.executable} "
        f"{ROOT}/tests/kernel/nic_guest.py {shared}/result.json {shared}/state"
    )
    machine = ["--disable-kvm", "--force-9p", "--cpus", "4", "--memory", "1G"]
    # In a network namespace of its own, for the tap device to disturb nobody.
    command = ["unshare", "--net", str(Path(sys.executable).parent / "vng"), *machine]
    command += ["-r", str(image), "--rwdir", str(shared), f"--qemu-opts={CARDS}", "--exec", guest]
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
    said = f"status {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert result.exists(), said
    found: dict[str, Any] = json.loads(result.read_text())
    assert "error" not in found, found["error"]
    return found


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("e1000e", {"ring", "irq", "rps", "rfs", "sysctl"}),
        # virtio_net places its queues itself, and anew after each change of their number.
        ("virtio_net", {"channels", "rfs", "sysctl"}),
        ("vlan on bond", {"ring", "channels", "irq", "rfs", "sysctl"}),
    ],
)
def test_applied_read_back_and_undone(name: str, kinds: set[str], answer: dict[str, Any]) -> None:
    found = answer[name]
    assert kinds <= set(found["kinds"])
    assert found["changed"] and found["left"] == []
    assert found["foreign"] == {} and found["differ"] == []


def test_channels_of_a_real_driver_are_lowered(answer: dict[str, Any]) -> None:
    # Four queues, and three CPUs that the guest asks for.
    planned = answer["virtio_net"]["planned"]
    assert any(line.endswith("channels (combined): 4 -> 3") for line in planned)


@pytest.mark.parametrize("step", [1, 4])
def test_killed_in_the_middle(step: int, answer: dict[str, Any]) -> None:
    assert answer[f"kill {step}"] == {"status": -9, "differ": []}
