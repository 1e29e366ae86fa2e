# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads and writes single settings of this host. Each kind has one reader and one writer."""

import errno
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

from fastsocket.errors import FastsocketError
from fastsocket.host.cpulist import format_list, format_mask, parse_list, parse_mask
from fastsocket.nic.changes import RESETTING, Setting
from fastsocket.nic.collect import read_irqs
from fastsocket.nic.ethtool import Ethtool, FlowRule
from fastsocket.nic.facts import Irq
from fastsocket.nic.irqbalance import ban, find_irqbalance
from fastsocket.nic.netfilter import read_netfilter, set_notrack

__all__ = ["Host", "LiveHost"]

T = TypeVar("T")

_SETTLE_S = 15.0
_POLL_S = 0.1
_FEATURES = ("rx-ntuple-filter",)


class Host(Protocol):
    """What apply and undo need of a host; values as in `Setting`."""

    def read(self, setting: Setting) -> str | None:
        """Return the value; None where there is no such setting (any more)."""

    def write(self, setting: Setting, value: str) -> None:
        """Set a value; OSError or FastsocketError where the host refuses."""

    def settings(self, interface: str) -> Iterator[Setting]:
        """Yield the settings of an interface that a plan may touch."""

    def carrier(self, interface: str) -> bool:
        """Return whether the link is there."""

    def settle(self, interface: str, *, carrier: bool) -> None:
        """Wait until a card that starts anew is back."""

    def ifindex(self, interface: str) -> int:
        """Return the number of the interface, which is new after a hot-plug; 0 = gone."""

    def boot_id(self) -> str:
        """Return what identifies the running boot."""


class LiveHost:
    """This host, in the network namespace of the caller."""

    def __init__(self, root: Path = Path("/")) -> None:
        """Remember where /proc and /sys are."""
        self._root = root
        self._irq_cache: dict[str, dict[str, Irq]] = {}
        self._width = max(parse_list(self._file("sys/devices/system/cpu/possible").read_text())) + 1

    def _file(self, name: str) -> Path:
        return self._root / name

    def boot_id(self) -> str:
        """Return the kernel's random identifier of this boot."""
        return self._file("proc/sys/kernel/random/boot_id").read_text().strip()

    def ifindex(self, interface: str) -> int:
        """Return the number of the interface; 0 = there is none."""
        try:
            return socket.if_nametoindex(interface)
        except OSError:
            return 0

    def carrier(self, interface: str) -> bool:
        """Return whether the link is there; it cannot be told while the interface is down."""
        try:
            return self._file(f"sys/class/net/{interface}/carrier").read_text().strip() == "1"
        except OSError:
            return False

    def settle(self, interface: str, *, carrier: bool) -> None:
        """Wait until the link is back, if it was there before.

        Raises:
            FastsocketError: It did not come back.
        """
        self._irq_cache.clear()
        end = time.monotonic() + _SETTLE_S
        while carrier and not self.carrier(interface):
            if time.monotonic() > end:
                raise FastsocketError(
                    f"the link of {interface} did not come back within {_SETTLE_S:.0f} s",
                    "the card started anew for the change",
                )
            time.sleep(_POLL_S)

    def settings(self, interface: str) -> Iterator[Setting]:
        """Yield what the interface has of the kinds in `Setting`."""

        def of(kind: str, names: Iterable[object]) -> Iterator[Setting]:
            yield from (Setting(kind, interface, str(name)) for name in names)

        with Ethtool(interface) as ethtool:
            features = _answer(ethtool.features) or {}
            yield from of("feature", [name for name in _FEATURES if name in features])
            for kind, request in (("channels", ethtool.channels), ("ring", ethtool.rings)):
                _, most = _answer(request) or ({}, {})
                yield from of(kind, [name for name in ("combined", "rx", "tx") if most.get(name)])
            yield from of("coalesce", _answer(ethtool.coalesce) or ())
            _, rules = _answer(ethtool.rules) or (0, {})
            yield from of("rule", rules)
        if self.read(Setting("rss", interface, "indirection")):
            yield from of("rss", ("indirection",))
        if self.read(Setting("irqbalance", interface, "ban")) is not None:
            yield from of("irqbalance", ("ban",))
        yield from of("irq", self._irqs(interface))
        queues = self._file(f"sys/class/net/{interface}/queues")
        for kind, stem in (("rps", "rx-"), ("rfs", "rx-"), ("xps", "tx-")):
            yield from of(kind, sorted(int(path.name[3:]) for path in queues.glob(f"{stem}*")))

    def read(self, setting: Setting) -> str | None:
        """Return the value; None where there is no such setting."""
        try:
            return self._read(setting)
        except (OSError, KeyError):
            return None

    def _read(self, setting: Setting) -> str | None:
        name, interface = setting.name, setting.interface
        match setting.kind:
            case "sysctl":
                text = self._sysctl(name).read_text()
            case "notrack":
                text = ",".join(str(port) for port in read_netfilter(self._root).notrack_ports)
            case "irq":
                text = self._affinity(interface, name).read_text()
            case "irqbalance":
                return self._read_bans(interface)
            case "rps" | "xps":
                text = format_list(parse_mask(self._queue(setting).read_text()))
            case "rfs":
                text = self._queue(setting).read_text()
            case _:
                with Ethtool(interface) as ethtool:
                    text = _read_ethtool(ethtool, setting)
        return " ".join(text.split())

    def write(self, setting: Setting, value: str) -> None:
        """Set a value. `OSError`: the kernel or the driver refuses it."""
        name, interface = setting.name, setting.interface
        match setting.kind:
            case "sysctl":
                self._sysctl(name).write_text(value)
            case "notrack":
                set_notrack(parse_list(value))
            case "irq":
                self._affinity(interface, name).write_text(value)
            case "irqbalance":
                self._write_bans(interface, value)
            case "rps" | "xps":
                self._queue(setting).write_text(format_mask(parse_list(value), self._width))
            case "rfs":
                self._queue(setting).write_text(value)
            case _:
                with Ethtool(interface) as ethtool:
                    _write_ethtool(ethtool, setting, value)
        if setting.kind in RESETTING:
            self._irq_cache.clear()

    def _sysctl(self, name: str) -> Path:
        return self._file("proc/sys") / name.replace(".", "/")

    def _queue(self, setting: Setting) -> Path:
        stem, leaf = {
            "rps": ("rx", "rps_cpus"),
            "rfs": ("rx", "rps_flow_cnt"),
            "xps": ("tx", "xps_cpus"),
        }[setting.kind]
        folder = self._file(f"sys/class/net/{setting.interface}/queues")
        return folder / f"{stem}-{setting.name}" / leaf

    def _irqs(self, interface: str) -> dict[str, Irq]:
        """Return the interrupts by the names rx-N and tx-N."""
        if interface not in self._irq_cache:
            with Ethtool(interface) as ethtool:
                driver = (_answer(ethtool.driver) or ("",))[0]
            self._irq_cache[interface] = {
                f"{'tx' if irq.kind == 'tx' else 'rx'}-{irq.queue}": irq
                for irq in read_irqs(interface, driver, self._root)
                if irq.kind != "other"
            }
        return self._irq_cache[interface]

    def _affinity(self, interface: str, name: str) -> Path:
        number = self._irqs(interface)[name].number
        return self._file(f"proc/irq/{number}/smp_affinity_list")

    def _read_bans(self, interface: str) -> str | None:
        daemon, irqs = find_irqbalance(self._root), self._irqs(interface)
        if not daemon.socket or not irqs:
            return None
        banned = [name for name, irq in irqs.items() if irq.number in daemon.banned]
        return "all" if len(banned) == len(irqs) else ",".join(sorted(banned))

    def _write_bans(self, interface: str, value: str) -> None:
        daemon, irqs = find_irqbalance(self._root), self._irqs(interface)
        if not daemon.socket:
            raise OSError(errno.ENOENT, "irqbalance has no control socket")
        names = irqs if value == "all" else [name for name in value.split(",") if name in irqs]
        others = set(daemon.banned) - {irq.number for irq in irqs.values()}
        ban(daemon.socket, others | {irqs[name].number for name in names})


def _answer(request: Callable[[], T]) -> T | None:
    """Return what a driver answers; None where it has no such thing."""
    try:
        return request()
    except OSError:
        return None


def _table_text(table: tuple[int, ...]) -> str:
    queues = max(table, default=-1) + 1
    if table and table == tuple(index % queues for index in range(len(table))):
        return f"equal {queues}"
    return ",".join(str(queue) for queue in table)


def _read_ethtool(ethtool: Ethtool, setting: Setting) -> str:
    name = setting.name
    match setting.kind:
        case "feature":
            text = "on" if ethtool.features()[name][0] else "off"
        case "channels":
            text = str(ethtool.channels()[0][name])
        case "ring":
            text = str(ethtool.rings()[0][name])
        case "coalesce":
            text = str(ethtool.coalesce()[name])
        case "rss":
            text = _table_text(ethtool.indirection()[0])
        case "rule":
            rule = ethtool.rules()[1].get(int(name), "")
            text = "foreign" if rule is None else str(rule)
        case _:
            raise ValueError(setting.kind)
    return text


def _write_ethtool(ethtool: Ethtool, setting: Setting, value: str) -> None:
    match setting.kind:
        case "feature":
            ethtool.set_feature(setting.name, value == "on")
        case "channels":
            ethtool.set_channels(**{setting.name: int(value)})
        case "ring":
            ethtool.set_rings({setting.name: int(value)})
        case "coalesce":
            ethtool.set_coalesce({setting.name: int(value)})
        case "rss":
            _write_table(ethtool, value)
        case "rule" if value:
            ethtool.insert_rule(int(setting.name), FlowRule.parse(value))
        case "rule":
            ethtool.delete_rule(int(setting.name))
        case _:
            raise ValueError(setting.kind)


def _write_table(ethtool: Ethtool, value: str) -> None:
    """Set the RSS table, as the driver's own default where that is the same.

    A table of the user's is kept when channels change, and may then forbid the change.
    """
    table, _ = ethtool.indirection()
    try:
        ethtool.set_indirection(())
        if _table_text(ethtool.indirection()[0]) == value:
            return
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
    if value.startswith("equal "):
        queues = int(value.removeprefix("equal "))
        ethtool.set_indirection(tuple(index % queues for index in range(len(table))))
    else:
        ethtool.set_indirection(tuple(int(queue) for queue in value.split(",")))
