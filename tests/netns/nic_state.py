# SPDX-License-Identifier: GPL-2.0-or-later
"""The state of an interface and of the namespace's settings, byte for byte, by plain means."""

import subprocess
from pathlib import Path

__all__ = ["state_of"]

# Counters, keys that the kernel makes itself, and files that cannot be read.
_MOVING = ("tcp_fastopen_key", "byte_queue_limits", "tx_timeout", "tx_maxrate", "traffic_class")


def state_of(interface: str) -> dict[str, str]:
    """Return queue files, sysctls, affinities, ethtool's answers and the nftables ruleset."""
    state = {}
    folders = (f"/sys/class/net/{interface}/queues", "/proc/sys/net/core", "/proc/sys/net/ipv4")
    for folder in folders:
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file() and not any(word in str(path) for word in _MOVING):
                try:
                    state[str(path)] = path.read_bytes().decode()
                except OSError as error:
                    state[str(path)] = str(error.errno)
    for path in sorted(Path("/proc/irq").glob("*/smp_affinity_list")):
        state[str(path)] = path.read_text()
    for option in ("-l", "-k", "-c", "-g", "-n", "-x"):
        state[f"ethtool {option}"] = _output("ethtool", option, interface)
    state["nft"] = _output("nft", "list", "ruleset")
    return state


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    return done.stdout + done.stderr
