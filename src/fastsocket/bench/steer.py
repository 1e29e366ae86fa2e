# SPDX-License-Identifier: GPL-2.0-or-later
"""What a rule costs a packet, from Python or written in C and compiled by clang.

Both run in the kernel's test run, on one packet again and again.
"""

import time
from dataclasses import dataclass, replace

from fastsocket.bench.modes import Mode
from fastsocket.bench.servers import Site
from fastsocket.native import native_file
from fastsocket.steer.check import Rule
from fastsocket.steer.compile import compile_rule
from fastsocket.steer.cpus import online_cpus
from fastsocket.steer.frames import generated_flows
from fastsocket.steer.program import SteerProgram, write_table

__all__ = ["RuleCost", "Rules", "measure_rule"]

_RUNS = 40


class Rules:
    """What stands in a server's place: nothing is started."""

    name = "rules"
    modes = (Mode.STOCK, Mode.FASTSOCKET)

    def command(self, mode: Mode, site: Site) -> list[str]:
        """See :class:`fastsocket.bench.servers.Server`."""
        del mode, site
        return []


@dataclass(frozen=True)
class RuleCost:
    """What one rule cost.

    Attributes:
        ns_per_packet: The least of several runs, as interruptions only add; in nanoseconds.
        prepare_ms: CPU time from the checked rule to the program in the kernel; of a rule in C,
            whose compilation is long past, loading alone.
    """

    ns_per_packet: float
    prepare_ms: float


def measure_rule(rule: Rule, in_c: bool, packets: int) -> RuleCost:
    """Measure a built-in rule over `packets` packets.

    Raises:
        BpfError: Privileges are missing.
    """
    cpus, frame = online_cpus(), next(generated_flows(1))
    compiled = compile_rule(rule, len(cpus)) if in_c else None  # for its tables' names and places
    begin = time.process_time()
    if compiled:
        built = native_file(f"steer-c-{rule.name}.bpf.o").read_bytes()
        compiled = replace(compiled, object=built)
    else:
        compiled = compile_rule(rule, len(cpus))
    with SteerProgram(compiled, cpus, tracing=True) as program:
        prepared = time.process_time() - begin
        if rule.name == "tenant":  # an empty table would answer without a look
            write_table(rule.tables["TENANTS"], program.map("TENANTS"), "0.0.0.0/0", 0)
        runs = [program.program_run(frame, packets // _RUNS) for _ in range(_RUNS)]
    return RuleCost(min(runs), 1000 * prepared)
