# SPDX-License-Identifier: GPL-2.0-or-later
"""Wires between namespaces: veth pairs whose packets are spread over the CPUs as a NIC does it.

A veth device hands a packet on by its sender's CPU, which no NIC could. Receive packet steering
(RPS) by the hash of the flow puts it where a NIC with a queue for each CPU would (RSS).
"""

import subprocess
from collections.abc import Sequence

from fastsocket.bench.netspace import Netspace
from fastsocket.bench.process import spawn
from fastsocket.errors import FastsocketError

__all__ = ["cpu_mask", "finish_checksums", "follow_readers", "spread_packets", "wire"]

_PATIENCE = 10.0


def wire(
    left: Netspace, right: Netspace, names: tuple[str, str], addresses: tuple[Sequence[str], str]
) -> None:
    """Connect two namespaces.

    Args:
        left: The namespace with several addresses.
        right: The namespace with one.
        names: The devices in both.
        addresses: Theirs, with the length of the prefix.

    Raises:
        FastsocketError: ip(8) is missing, or the kernel refused.
    """
    near, far = names
    several, single = addresses
    _run(["ip", "link", "add", near, "type", "veth", "peer", "name", far], left)
    _run(["ip", "link", "set", far, "netns", right.path], left)
    for address in several:
        _run(["ip", "address", "add", address, "dev", near], left)
    _run(["ip", "address", "add", single, "dev", far], right)
    _run(["ip", "link", "set", near, "up"], left)
    _run(["ip", "link", "set", far, "up"], right)


def spread_packets(netspace: Netspace, device: str, cpus: Sequence[int]) -> None:
    """Let `device` spread what it receives over `cpus`, by flow.

    The devices of a namespace stand in a sysfs that was mounted inside it, so a mount namespace is
    made for the length of a write.

    Raises:
        FastsocketError: The kernel refused.
    """
    _set(netspace, device, "rps_cpus", cpu_mask(cpus))


def follow_readers(netspace: Netspace, device: str, cpus: Sequence[int], flows: int) -> None:
    """Let `device` send each flow to that of `cpus` where it was last read (RFS).

    Args:
        netspace: Where the device is.
        device: Its name.
        cpus: Where flows go that nobody read so far, by hash.
        flows: How many it remembers, a power of two.

    Raises:
        FastsocketError: The kernel refused.
    """
    spread_packets(netspace, device, cpus)
    _set(netspace, device, "rps_flow_cnt", str(flows))


def _set(netspace: Netspace, device: str, name: str, value: str) -> None:
    file = f"/sys/class/net/{device}/queues/rx-0/{name}"
    script = f"mount -t sysfs sysfs /sys && echo {value} > {file}"
    _run(["unshare", "--mount", "sh", "-c", script], netspace)


def finish_checksums(netspace: Netspace, device: str) -> None:
    """Let what `device` sends have its checksum, as on a real wire: XDP can redirect nothing else.

    Raises:
        FastsocketError: ethtool(8) is missing, or the kernel refused.
    """
    _run(["ethtool", "-K", device, "tx", "off"], netspace)


def cpu_mask(cpus: Sequence[int]) -> str:
    """Return the kernel's form of a CPU mask: hexadecimal, a comma between 32 bits each."""
    mask = sum(1 << cpu for cpu in set(cpus))
    words: list[str] = []
    while mask or not words:
        words.append(f"{mask & 0xFFFFFFFF:08x}")
        mask >>= 32
    return ",".join(reversed(words))


def _run(command: Sequence[str], netspace: Netspace) -> None:
    """Run a command inside a namespace.

    Raises:
        FastsocketError: It failed; its last words are quoted.
    """
    process = spawn(command, netspace, subprocess.STDOUT, subprocess.PIPE)
    said, _ = process.communicate(timeout=_PATIENCE)
    if process.returncode != 0:
        last = said.strip().splitlines()[-1:] or ["it said nothing"]
        raise FastsocketError(f"'{' '.join(command)}' failed", last[0])
