# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules for tests, and traffic over the veth pair of the fixture `veth`."""

import socket
import subprocess
import sys
from pathlib import Path

from fastsocket.steer import device
from fastsocket.steer.check import parse_rule
from fastsocket.steer.compile import CompiledRule, compile_rule
from fastsocket.steer.cpus import online_cpus

PEER = "fsteer-peer"
CLONE_NEWNET = 0x40000000


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def rule(source: str, cpus: int | None = None) -> CompiledRule:
    return compile_rule(parse_rule(source, Path("test.py")), cpus or len(online_cpus()))


SENDER = """
import socket, sys, time
target, port, count, size, pause = sys.argv[1], *map(int, sys.argv[2:5]), float(sys.argv[5])
sender = socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_DGRAM)
sender.bind(("", 7777))
sender.connect((target, port))
for _ in range(count):
    sender.send(bytes(size))
    time.sleep(pause)
"""


class Traffic:
    """Datagrams from PEER to this namespace."""

    def __init__(self, count: int, size: int = 10, target: str = "10.9.0.1", pause: float = 0):
        family = socket.AF_INET6 if ":" in target else socket.AF_INET
        self.count = count
        self.receiver = socket.socket(family, socket.SOCK_DGRAM)
        self.receiver.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
        self.receiver.bind((target, 0))
        # Only a connected socket notes the CPU of what it receives.
        self.receiver.connect((target[:-1] + "2", 7777))
        self.receiver.settimeout(2)
        words = map(str, (target, self.receiver.getsockname()[1], count, size, pause))
        self.sender = subprocess.Popen(
            ["ip", "netns", "exec", PEER, sys.executable, "-c", SENDER, *words]
        )

    def received(self) -> tuple[int, set[int]]:
        """Wait for the sender; return how many came and the CPUs that took them in."""
        assert self.sender.wait(30) == 0
        cpus, count = set(), 0
        with self.receiver:
            while count < self.count:
                try:
                    self.receiver.recv(65536)
                except TimeoutError:
                    break
                cpus.add(self.receiver.getsockopt(socket.SOL_SOCKET, 49))  # SO_INCOMING_CPU
                count += 1
        return count, cpus


def arrive(count: int, size: int = 10, target: str = "10.9.0.1") -> bool:
    """Whether all of `count` datagrams arrive."""
    return Traffic(count, size, target).received()[0] == count


def total(*ways: str) -> int:
    return sum(device.status()[0].exits[way] for way in ways)
