# SPDX-License-Identifier: GPL-2.0-or-later
"""CPU topology, read from sysfs alone, so that recorded hosts can be replayed.

Sources: Documentation/admin-guide/cputopology.rst and
Documentation/ABI/stable/sysfs-devices-system-cpu of the kernel.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fastsocket.host.cpulist import parse_list
from fastsocket.host.files import read_number, read_text

__all__ = ["Cpu", "Topology", "order_physical_first", "read_topology"]


@dataclass(frozen=True)
class Cpu:
    """One logical CPU. Unknown numbers are -1: the kernel tells nothing about offline CPUs."""

    id: int
    core: int = -1
    """Core number within the package; two packages use the same numbers."""
    package: int = -1
    node: int = -1
    """NUMA node."""
    llc: int = -1
    """Lowest CPU that shares the last-level cache, which names the cache uniquely."""
    siblings: tuple[int, ...] = ()
    """Hyper-threads of this core that are online, this CPU included."""
    online: bool = True
    isolated: bool = False
    """Taken from the scheduler by ``isolcpus=`` or by an isolated cpuset partition."""

    @property
    def usable(self) -> bool:
        """Whether unpinned work may run here: online and not isolated."""
        return self.online and not self.isolated


@dataclass(frozen=True)
class Topology:
    """All present CPUs by ascending number, and the distances between NUMA nodes."""

    cpus: tuple[Cpu, ...]
    distances: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Per node, the distance to each node in the order of the sorted node numbers (10 = local)."""

    @property
    def online(self) -> tuple[int, ...]:
        """Numbers of the online CPUs."""
        return tuple(cpu.id for cpu in self.cpus if cpu.online)

    @property
    def usable(self) -> tuple[int, ...]:
        """Numbers of the CPUs that are online and not isolated."""
        return tuple(cpu.id for cpu in self.cpus if cpu.usable)

    @property
    def nodes(self) -> tuple[int, ...]:
        """NUMA nodes that have CPUs."""
        return tuple(sorted({cpu.node for cpu in self.cpus if cpu.node >= 0}))

    @property
    def packages(self) -> tuple[int, ...]:
        """Processor packages (sockets) that have online CPUs."""
        return tuple(sorted({cpu.package for cpu in self.cpus if cpu.package >= 0}))

    @property
    def cores(self) -> int:
        """Number of physical cores that are online."""
        return len({cpu.siblings or (cpu.id,) for cpu in self.cpus if cpu.online})

    def cpu(self, number: int) -> Cpu:
        """Return one CPU.

        Raises:
            KeyError: There is no such CPU.
        """
        for cpu in self.cpus:
            if cpu.id == number:
                return cpu
        raise KeyError(number)

    def distance(self, one: int, other: int) -> int:
        """Return the NUMA distance of two nodes: 10 where they are the same or unknown."""
        row = self.distances.get(one, ())
        known = sorted(self.distances)
        if other not in known or len(row) <= known.index(other):
            return 10 if one == other or min(one, other) < 0 else 20
        return row[known.index(other)]


def read_topology(root: Path = Path("/")) -> Topology:
    """Read the topology below `root`, which is ``/`` or a recorded tree with ``sys`` in it.

    A file that an old kernel, a container or a recording lacks leaves its value unknown.
    """
    base = root / "sys/devices/system/cpu"
    online = _cpus(base / "online")
    present = _cpus(base / "present") or online
    isolated = set(_cpus(base / "isolated"))
    # CPUs of isolated cpuset partitions; older kernels have no such file.
    isolated.update(_cpus(root / "sys/fs/cgroup/cpuset.cpus.isolated"))
    node_of, distances = _nodes(root / "sys/devices/system/node")
    cpus = []
    for number in present:
        if number not in online:
            cpus.append(Cpu(number, online=False, isolated=number in isolated))
            continue
        folder = base / f"cpu{number}/topology"
        siblings = _cpus(folder / "core_cpus_list") or _cpus(folder / "thread_siblings_list")
        cpus.append(
            Cpu(
                id=number,
                core=read_number(folder / "core_id", default=number),
                package=read_number(folder / "physical_package_id", -1),
                node=node_of.get(number, -1),
                llc=_last_level_cache(base / f"cpu{number}/cache"),
                siblings=siblings or (number,),
                isolated=number in isolated,
            )
        )
    return Topology(tuple(cpus), distances)


def order_physical_first(topology: Topology, allowed: Iterable[int], node: int = -1) -> list[int]:
    """Return the usable CPUs of `allowed`: one of each core first, then their hyper-threads.

    Within each round the CPUs near `node` come first, by NUMA distance; without a node (-1)
    they come in ascending order. A core's first thread is its lowest *allowed* CPU, so a set that
    holds only second threads is still a set of whole cores.
    """
    wanted = set(allowed)
    usable = [cpu for cpu in topology.cpus if cpu.usable and cpu.id in wanted]
    numbers = {cpu.id for cpu in usable}

    def key(cpu: Cpu) -> tuple[int, int, int]:
        rank = sum(1 for sibling in cpu.siblings if sibling < cpu.id and sibling in numbers)
        return rank, topology.distance(node, cpu.node) if node >= 0 else 0, cpu.id

    return [cpu.id for cpu in sorted(usable, key=key)]


def _nodes(folder: Path) -> tuple[dict[int, int], dict[int, tuple[int, ...]]]:
    """Return the node of each CPU, and each node's row of distances."""
    node_of: dict[int, int] = {}
    distances: dict[int, tuple[int, ...]] = {}
    for node in _cpus(folder / "online"):
        for cpu in _cpus(folder / f"node{node}/cpulist"):
            node_of[cpu] = node
        row = read_text(folder / f"node{node}/distance").split()
        if row:
            distances[node] = tuple(int(value) for value in row)
    return node_of, distances


def _last_level_cache(folder: Path) -> int:
    """Return the lowest CPU that shares the cache of the highest level, -1 where unknown."""
    best_level, lowest = 0, -1
    index = 0
    while (level := read_number(folder / f"index{index}/level", -1)) > 0:
        shared = _cpus(folder / f"index{index}/shared_cpu_list")
        if shared and level > best_level:
            best_level, lowest = level, shared[0]
        index += 1
    return lowest


def _cpus(path: Path) -> tuple[int, ...]:
    return parse_list(read_text(path))
