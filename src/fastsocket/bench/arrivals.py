# SPDX-License-Identifier: GPL-2.0-or-later
"""How packets come to a server: steered by the kernel or by a rule, with and without its help.

Each way is for a block and leaves everything as it was. What belongs to the whole host is written
to the log first: whoever kills the bench meanwhile finds there what to put back.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from fastsocket.bench.modes import Mode
from fastsocket.bench.netspace import Netspace
from fastsocket.bench.wires import follow_readers, spread_packets
from fastsocket.errors import MissingFeatureError
from fastsocket.host.journal import append
from fastsocket.steer import device as devices
from fastsocket.steer.compile import compile_rule
from fastsocket.steer.library import find_rule

__all__ = ["arriving", "kernel_follows", "rule_follows"]

_SYSCTL = Path("/proc/sys/net")
_FLOWS = _SYSCTL / "core/rps_sock_flow_entries"
_DEFER = _SYSCTL / "core/skb_defer_max"
_DEMUX = _SYSCTL / "ipv4/tcp_early_demux"
_TABLE = 4096


def arriving(
    mode: Mode, netspace: Netspace, device: str, cpus: Sequence[int], rule: bool
) -> AbstractContextManager[None]:
    """Let packets come to `device` as `mode` has it, for a block.

    Args:
        mode: Of the bench.
        netspace: Where the device is.
        device: Its name.
        cpus: Where packets may go.
        rule: Whether Fastsocket's way is the rule receive_cpu.

    Raises:
        FastsocketError: The kernel refused.
        MissingFeatureError: The kernel has no such switch.
    """
    match mode:
        case Mode.RPS:
            spread_packets(netspace, device, cpus)
        case Mode.RFS:
            return kernel_follows(netspace, device, cpus)
        case Mode.NO_EARLY_DEMUX:
            with netspace.entered():  # of this namespace alone, which ends with the run
                _present(_DEMUX).write_text("0")
        case Mode.NO_SKB_DEFER:
            return _set(_DEFER, 0)
        case Mode.FASTSOCKET if rule:
            return rule_follows(netspace, device, cpus)
    return nullcontext()


@contextmanager
def kernel_follows(netspace: Netspace, device: str, cpus: Sequence[int]) -> Iterator[None]:
    """Let RFS steer, for a block; its table of sockets is the host's.

    Raises:
        MissingFeatureError: The kernel has no RFS.
    """
    with _set(_FLOWS, max(int(_present(_FLOWS).read_text()), _TABLE)):
        follow_readers(netspace, device, cpus, _TABLE)
        yield


@contextmanager
def rule_follows(netspace: Netspace, device: str, cpus: Sequence[int]) -> Iterator[None]:
    """Let the rule receive_cpu steer, for a block.

    Raises:
        FastsocketError: It cannot be attached.
    """
    with netspace.entered():
        devices.attach(compile_rule(find_rule("receive_cpu"), len(cpus)), device, cpus)
    try:
        yield
    finally:
        with netspace.entered():
            devices.detach(device)


def _present(sysctl: Path) -> Path:
    """Return the path of a switch.

    Raises:
        MissingFeatureError: There is none of this name.
    """
    if not sysctl.exists():
        raise MissingFeatureError(
            f"{sysctl} is not there", "the kernel is older, or this is not its first namespace"
        )
    return sysctl


@contextmanager
def _set(sysctl: Path, value: int) -> Iterator[None]:
    """Set a value of the host's for a block.

    Raises:
        MissingFeatureError: There is none of this name.
    """
    before = _present(sysctl).read_text()
    append(f"bench sets {sysctl} from {before.strip()} to {value} for a while")
    try:
        sysctl.write_text(str(value))
        yield
    finally:
        sysctl.write_text(before)
