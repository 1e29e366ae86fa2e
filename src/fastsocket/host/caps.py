# SPDX-License-Identifier: GPL-2.0-or-later
"""What this process may do: effective capabilities, BPF policy and resource limits."""

import resource
from dataclasses import dataclass
from pathlib import Path

from fastsocket.errors import MissingFeatureError

__all__ = [
    "CAPABILITIES",
    "Privileges",
    "ensure_files",
    "ensure_memlock",
    "live_privileges",
    "read_privileges",
    "require_bpf",
]

# Bit numbers of include/uapi/linux/capability.h. CAP_PERFMON came with 5.8 (980737282232), CAP_BPF
# too (a17b53c4a4b5); CAP_SYS_ADMIN implies both.
CAPABILITIES = {
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_RESOURCE": 24,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}

# The mapping of user ids in the first user namespace: every id to itself (user_namespaces(7)).
_WHOLE_ID_SPACE = ["0", "0", "4294967295"]


@dataclass(frozen=True, slots=True)
class Privileges:
    """What the kernel lets this process do.

    Attributes:
        effective: The names in CAPABILITIES that are in the effective set.
        initial_userns: Whether it lives in the first user namespace. Elsewhere capabilities do
            not reach bpf(2), whatever the set says.
        unprivileged_bpf_disabled: The sysctl: 0 anybody may load some programs, 1 and 2 only
            CAP_BPF; None where it cannot be read.
        nofile: Soft and hard limit of open files; -1 is unlimited.
        memlock: Soft and hard limit of locked memory in bytes; -1 is unlimited.
    """

    effective: frozenset[str]
    initial_userns: bool
    unprivileged_bpf_disabled: int | None
    nofile: tuple[int, int]
    memlock: tuple[int, int]

    def has(self, name: str) -> bool:
        """Say whether a capability is effective, CAP_BPF and CAP_PERFMON also by CAP_SYS_ADMIN."""
        if name in ("CAP_BPF", "CAP_PERFMON"):
            return self.initial_userns and bool(self.effective & {name, "CAP_SYS_ADMIN"})
        return name in self.effective

    @property
    def can_load_bpf(self) -> bool:
        """Whether the select program can be loaded: it needs CAP_BPF and CAP_NET_ADMIN."""
        return self.has("CAP_BPF") and self.has("CAP_NET_ADMIN")

    @property
    def missing_for_bpf(self) -> tuple[str, ...]:
        """The capabilities that loading the select program lacks."""
        return tuple(name for name in ("CAP_BPF", "CAP_NET_ADMIN") if not self.has(name))


def live_privileges() -> Privileges:
    """Return the privileges of the calling process."""
    return read_privileges(
        Path("/"),
        resource.getrlimit(resource.RLIMIT_NOFILE),
        resource.getrlimit(resource.RLIMIT_MEMLOCK),
    )


def read_privileges(root: Path, nofile: tuple[int, int], memlock: tuple[int, int]) -> Privileges:
    """Return the privileges that ``proc/self`` below `root` shows, with the limits given."""
    mask = 0
    for line in (root / "proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            mask = int(value, 16)
    try:
        initial = (root / "proc/self/uid_map").read_text().split() == _WHOLE_ID_SPACE
    except FileNotFoundError:  # a kernel without user namespaces has only the first one
        initial = True
    try:
        disabled = int((root / "proc/sys/kernel/unprivileged_bpf_disabled").read_text())
    except (OSError, ValueError):
        disabled = None
    effective = frozenset(name for name, bit in CAPABILITIES.items() if mask >> bit & 1)
    return Privileges(effective, initial, disabled, nofile, memlock)


def require_bpf(privileges: Privileges, purpose: str) -> None:
    """Check that BPF programs can be loaded.

    Raises:
        MissingFeatureError: With the capabilities that are missing and how to get them.
    """
    if privileges.can_load_bpf:
        return
    missing = " and ".join(privileges.missing_for_bpf)
    if not privileges.initial_userns:
        raise MissingFeatureError(
            f"{purpose} needs {missing}",
            "this process is in a user namespace, where capabilities do not reach bpf(2)",
            "start it on the host, or use the unprivileged tier",
        )
    raise MissingFeatureError(
        f"{purpose} needs {missing}",
        "this process has not got it",
        "run it as root, or grant the capabilities (systemd: AmbientCapabilities=)",
    )


def ensure_files(count: int, purpose: str) -> None:
    """Let this process open `count` files, by raising its soft limit where the hard one allows.

    What it executes later inherits the limit: a launcher must not call this for its command.

    Raises:
        MissingFeatureError: The hard limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise MissingFeatureError(
            f"{purpose} needs {count} open files",
            f"the hard limit is {hard}",
            f"ulimit -Hn {count} as root, or LimitNOFILE={count} in the systemd unit",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def ensure_memlock() -> bool:
    """Lift the limit of locked memory, which BPF maps are charged to on older kernels.

    Since Linux v5.11 a memory cgroup is charged instead, and the limit means nothing to BPF; asking
    for it there does no harm.

    Returns:
        Whether there is no limit now. Where there is one, a map that fails with EPERM despite
        CAP_BPF has run into it.
    """
    try:
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_MEMLOCK, unlimited)
    except (ValueError, PermissionError):  # without CAP_SYS_RESOURCE
        return resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY
    return True
