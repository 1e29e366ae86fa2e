# SPDX-License-Identifier: GPL-2.0-or-later
"""`steer`: what rules cost a packet, and how well packets follow their reader.

`stock` is what there is without Fastsocket: the same rules written in C, and the kernel's receive
flow steering. `fastsocket` is rules written in Python, and the rule receive_cpu.
"""

from collections.abc import Mapping

from fastsocket.bench.modes import Mode
from fastsocket.bench.readers import local_reads
from fastsocket.bench.scenario import Measurement, Setup
from fastsocket.bench.steer import Rules, measure_rule
from fastsocket.errors import MissingFeatureError
from fastsocket.steer.cpus import online_cpus
from fastsocket.steer.library import built_in_rules

__all__ = ["Steer"]

PACKETS_PER_SECOND = 1_000_000
"""So many packets run through each rule, for each second of a run."""
ONE_CPU = "there is one CPU only"


class Steer:
    """Cost of rules by name, time to prepare one, and reads that find data of their CPU."""

    name = "steer"
    servers = (Rules.name,)

    @property
    def metrics(self) -> Mapping[str, str]:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        costs = {f"ns_per_packet_{rule.name}": "ns" for rule in built_in_rules()}
        return {**costs, "prepare_ms": "ms", "reader_local_percent": "%"}

    def prepare(self, setup: Setup) -> Setup:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        if setup.probe is None or not setup.private:
            raise MissingFeatureError(
                "rules run in the kernel", setup.probe_reason or "no namespaces", "run it as root"
            )
        return setup

    def measure(self, setup: Setup, mode: Mode) -> Measurement:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        taken, slowest = Measurement(), 0.0
        for rule in built_in_rules():
            packets = int(PACKETS_PER_SECOND * setup.seconds)
            cost = measure_rule(rule, mode is Mode.STOCK, packets)
            taken.put(f"ns_per_packet_{rule.name}", cost.ns_per_packet)
            slowest = max(slowest, cost.prepare_ms)
        taken.put("prepare_ms", slowest)
        cpus = online_cpus()
        if setup.probe is None or len(cpus) < 2:
            taken.put("reader_local_percent", None, ONE_CPU)
            return taken
        share = local_reads(setup.probe, cpus, setup.seconds / len(cpus), mode is Mode.FASTSOCKET)
        taken.put("reader_local_percent", share)
        return taken
