# SPDX-License-Identifier: GPL-2.0-or-later
"""A host in memory that behaves like a driver, and the facts that it shows."""

import errno
from collections.abc import Iterator

import msgspec

from fastsocket.host.cpulist import format_list
from fastsocket.nic.changes import Setting
from fastsocket.nic.facts import Counts, HostFacts, Irq, Nic, RxQueue, TxQueue


class FakeHost:
    """Settings of the cards of some facts; a change of channels or rings makes a card forget."""

    def __init__(self, facts: HostFacts, *, forgetful: bool = True) -> None:
        self.facts = facts
        self.forgetful = forgetful
        self.refuses: dict[str, int] = {}
        self.rounds: dict[str, str] = {}
        self.boot = "boot-1"
        self.numbers = {nic.name: nic.ifindex for nic in facts.nics}
        self.writes: list[tuple[Setting, str]] = []
        self.values: dict[Setting, str] = {}
        for nic in facts.cards:
            self._add(nic)
        for name, value in facts.sysctls.items():
            self.values[Setting("sysctl", "", name)] = value
        ports = ",".join(str(port) for port in facts.netfilter.notrack_ports)
        self.values[Setting("notrack", "", "ports")] = ports

    def _add(self, nic: Nic) -> None:
        def put(kind: str, name: object, value: object) -> None:
            self.values[Setting(kind, nic.name, str(name))] = str(value)

        for name, on in nic.offloads.items():
            if name == "rx-ntuple-filter":
                put("feature", name, "on" if on else "off")
        for kind, counts in (("channels", nic.channels), ("ring", nic.rings)):
            for name, value in (counts.now if counts else {}).items():
                put(kind, name, value)
        for name, value in nic.coalesce.items():
            put("coalesce", name, value)
        if nic.indirection:
            put("rss", "indirection", f"equal {max(nic.indirection) + 1}")
        for where, rule in nic.rules.items():
            put("rule", where, rule)
        for irq in nic.irqs:
            if irq.kind != "other":
                put("irq", f"{'tx' if irq.kind == 'tx' else 'rx'}-{irq.queue}", irq.affinity)
        if self.facts.irqbalance.socket and nic.irqs:
            put("irqbalance", "ban", "")
        for queue, rx in enumerate(nic.rx):
            put("rps", queue, rx.rps_cpus)
            put("rfs", queue, rx.rps_flow_cnt)
        for queue, tx in enumerate(nic.tx):
            put("xps", queue, tx.xps_cpus)

    def read(self, setting: Setting) -> str | None:
        if setting.kind == "rule" and setting not in self.values:
            return "" if self.numbers.get(setting.interface) else None
        return self.values.get(setting)

    def write(self, setting: Setting, value: str) -> None:
        if str(setting) in self.refuses:
            raise OSError(self.refuses[str(setting)], "Operation not supported")
        if setting not in self.values and setting.kind != "rule":
            raise OSError(errno.ENOENT, "No such file or directory")
        self.writes.append((setting, value))
        self.values[setting] = self.rounds.get(str(setting), value)
        if setting.kind == "rule" and not value:
            del self.values[setting]
        if setting.kind in ("channels", "ring") and self.forgetful:
            self._reset(setting, value)

    def _reset(self, setting: Setting, value: str) -> None:
        """Do what drivers do: queues come and go, and affinities fall back."""
        name = setting.interface
        if setting.kind == "channels":
            sides = {"combined": ("rx", "tx"), "rx": ("rx",), "tx": ("tx",)}[setting.name]
            for side in sides:
                self._resize(name, side, int(value))
            rss = Setting("rss", name, "indirection")
            if rss in self.values:
                self.values[rss] = f"equal {value}"
        every = format_list(range(self.facts.possible))
        for one in list(self.values):
            if one.interface == name and one.kind == "irq":
                self.values[one] = every
            elif one.interface == name and one.kind == "xps":
                self.values[one] = ""

    def _resize(self, name: str, side: str, count: int) -> None:
        kinds = {"rx": ("rps", "rfs"), "tx": ("xps",)}[side]
        for kind in kinds:
            queues = [int(one.name) for one in self._of(name, kind)]
            for queue in queues:
                if queue >= count:
                    del self.values[Setting(kind, name, str(queue))]
            for queue in range(len(queues), count):
                self.values[Setting(kind, name, str(queue))] = "0" if kind == "rfs" else ""
        irqs = [one for one in self._of(name, "irq") if one.name.startswith(side)]
        for one in irqs:
            if int(one.name[3:]) >= count:
                del self.values[one]
        for queue in range(len(irqs), count if irqs else 0):
            self.values[Setting("irq", name, f"{side}-{queue}")] = ""

    def _of(self, name: str, kind: str) -> list[Setting]:
        return [one for one in self.values if one.interface == name and one.kind == kind]

    def settings(self, interface: str) -> Iterator[Setting]:
        yield from [one for one in self.values if one.interface == interface]

    def carrier(self, interface: str) -> bool:
        return True

    def settle(self, interface: str, *, carrier: bool) -> None:
        assert carrier

    def ifindex(self, interface: str) -> int:
        return self.numbers.get(interface, 0)

    def boot_id(self) -> str:
        return self.boot

    def now(self) -> HostFacts:
        """Return the facts as they are after the writes."""
        sysctls = {one.name: value for one, value in self.values.items() if one.kind == "sysctl"}
        ports = self.values[Setting("notrack", "", "ports")]
        netfilter = msgspec.structs.replace(
            self.facts.netfilter,
            notrack_ports=tuple(int(port) for port in ports.split(",") if port),
        )
        nics = tuple(nic if nic.lower else self._nic(nic) for nic in self.facts.nics)
        banned = {
            irq.number
            for nic in nics
            for irq in nic.irqs
            if self.values.get(Setting("irqbalance", nic.name, "ban")) == "all"
        }
        return msgspec.structs.replace(
            self.facts,
            nics=nics,
            sysctls=sysctls,
            netfilter=netfilter,
            irqbalance=msgspec.structs.replace(self.facts.irqbalance, banned=tuple(sorted(banned))),
        )

    def _nic(self, nic: Nic) -> Nic:
        def values(kind: str) -> dict[str, str]:
            return {one.name: self.values[one] for one in self._of(nic.name, kind)}

        def counts(kind: str, known: Counts | None) -> Counts | None:
            if known is None:
                return None
            return Counts({name: int(value) for name, value in values(kind).items()}, known.most)

        separate = any(irq.kind == "tx" for irq in nic.irqs)
        kinds = {"rx": "rx" if separate else "combined", "tx": "tx"}
        irqs = [
            Irq(500 + number, name, kinds[name[:2]], int(name[3:]), affinity)  # type: ignore[arg-type]
            for number, (name, affinity) in enumerate(sorted(values("irq").items()))
        ]
        rps, rfs, xps = values("rps"), values("rfs"), values("xps")
        rss = values("rss").get("indirection", "")
        table = nic.indirection
        if rss.startswith("equal"):
            table = tuple(index % int(rss[6:]) for index in range(len(table)))
        offloads = {name: value == "on" for name, value in values("feature").items()}
        return msgspec.structs.replace(
            nic,
            channels=counts("channels", nic.channels),
            rings=counts("ring", nic.rings),
            coalesce={name: int(value) for name, value in values("coalesce").items()},
            offloads={**nic.offloads, **offloads},
            indirection=table,
            rules={int(name): rule for name, rule in values("rule").items()},
            irqs=tuple(irqs),
            rx=tuple(RxQueue(rps[str(queue)], int(rfs[str(queue)])) for queue in range(len(rps))),
            tx=tuple(TxQueue(xps[str(queue)]) for queue in range(len(xps))),
        )
