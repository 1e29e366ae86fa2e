# SPDX-License-Identifier: GPL-2.0-or-later
"""Receive flow deliver, a rule and the local fast path on the oldest and newest installed kernel.

The machine boots without KVM, so it tells what goes where, not how fast. FASTSOCKET_VM_CPUS=24
gives it more CPUs than continuous integration has time for (`make soak`). Debian 12's own kernel
has no IP_LOCAL_PORT_RANGE: there the connect hooks give the ports.
"""

import json
import os
import pickle
import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastsocket.bench.machine import Machine
from fastsocket.errors import MissingFeatureError
from fastsocket.local.fastpath import WATCHERS
from fastsocket.steer.compile import compile_rule
from fastsocket.steer.library import find_rule

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).parents[2]
CPUS = int(os.environ.get("FASTSOCKET_VM_CPUS", "4"))
LIMIT_S = 900


def machine(which: int) -> Machine:
    """Return a machine with the oldest (0) or the newest (-1) installed kernel that has veth."""
    try:
        found = Machine.find(CPUS)
    except MissingFeatureError as error:
        pytest.skip(str(error))
    images = [
        image
        for image in sorted(Path("/boot").glob("vmlinuz-*"))
        if any(
            Path("/lib/modules", image.name.removeprefix("vmlinuz-")).glob(
                "kernel/drivers/net/veth.ko*"  # later kernels have them compressed
            )
        )
    ]
    if which and len(images) < 2:
        pytest.skip("needs a second kernel with veth (package linux-image-6.12-amd64)")
    return replace(found, image=images[which])


@pytest.fixture(scope="module", params=[0, -1], ids=["oldest", "newest"])
def answer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Boot a machine once, and return what the guest found."""
    chosen, shared = machine(request.param), tmp_path_factory.mktemp("guest")
    for rule in ("rfd", "hash"):
        (shared / f"{rule}.pickle").write_bytes(pickle.dumps(compile_rule(find_rule(rule), CPUS)))
    guest = [sys.executable, f"{ROOT}/tests/kernel/steer_guest.py", str(shared)]
    command = shlex.join(["env", f"PYTHONPATH={ROOT}/src", *guest])
    process = chosen.boot(shared, command, shared / "log")
    try:
        process.wait(LIMIT_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    result = shared / "result.json"
    assert result.exists(), (shared / "log").read_text(errors="replace")[-2000:]
    found = json.loads(result.read_text())
    assert "error" not in found, found["error"]
    assert found["cpus"] == CPUS
    assert found["kernel"] == chosen.image.name.removeprefix("vmlinuz-")
    return found


def test_answers_come_in_where_the_connection_was_opened(answer: dict[str, Any]) -> None:
    assert answer["rfd"]["mode"] == "native"
    assert answer["rfd"]["packets"] > 3 * CPUS
    assert answer["rfd"]["percent"] >= 99.9
    assert answer["stock"]["percent"] < 3 * 100 / CPUS  # one in CPUS, and chance


def test_a_rule_uses_all_cpus(answer: dict[str, Any]) -> None:
    exits = answer["hash"]["exits"]
    assert exits["redirected"] > CPUS
    assert not exits["unreachable"] + exits["no_cpu"] + exits["unfinished"]
    assert len(answer["hash"]["cpus"]) > CPUS // 2


def test_the_local_fast_path_costs_no_other_system_call(answer: dict[str, Any]) -> None:
    assert answer["past_tcp"]["watches"] == WATCHERS[0]
    # Bytes in that queue are counted since Linux commit 929e30f93125; without, the path stays off.
    assert set(answer["past_tcp"]["failed"]) <= {"FIONREAD"}
