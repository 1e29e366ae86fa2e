# SPDX-License-Identifier: GPL-2.0-or-later
"""The counters of an attached rule reach top, record and export."""

import json
import subprocess
import sys

import pytest

from fastsocket.errors import ConflictError
from fastsocket.observe.steering import steering_counters
from fastsocket.steer import device
from fastsocket.steer.cpus import online_cpus
from tests.netns.steer_tools import PEER, arrive, ip, rule

pytestmark = pytest.mark.netns

SOURCE = "SEEN = counter()\n\n\ndef rule(pkt, cpus):\n    SEEN.add(1)\n    return PASS\n"


def test_packets_by_way_out_and_own_counters(veth: str) -> None:
    assert steering_counters() == {}
    device.attach(rule(SOURCE), veth, online_cpus())
    # The rule is not asked about packets whose checksum is left to hardware.
    ip("netns", "exec", PEER, "ethtool", "-K", "fs1", "tx", "off")
    assert arrive(20)
    counts = steering_counters()
    assert counts[f"{veth} SEEN"] >= 20
    assert sum(n for name, n in counts.items() if name != f"{veth} SEEN") >= 20
    command = [sys.executable, "-m", "fastsocket", "top", "--json", "--interval", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert f"{veth} SEEN" in json.loads(done.stdout)["steering"]
    device.detach(veth)
    assert steering_counters() == {}


def test_nothing_to_tell_without_the_right_to_look() -> None:
    def refuse() -> list[device.Attachment]:
        raise ConflictError("a rule is being removed")

    def forbid() -> list[device.Attachment]:
        raise PermissionError("/sys/fs/bpf")

    assert steering_counters(refuse) == steering_counters(forbid) == {}
