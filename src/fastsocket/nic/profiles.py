# SPDX-License-Identifier: GPL-2.0-or-later
"""What a plan aims at, per kind of traffic. Every value stands here with its reason."""

import msgspec

from fastsocket.errors import UsageError

__all__ = ["OPEN_FILES_LOW", "PROFILES", "SQUEEZED_MANY", "Floor", "Profile", "find_profile"]

# One connection takes a file, and a proxy's takes two.
OPEN_FILES_LOW = 65536
# Polls that ran out of their budget; a few at boot mean nothing.
SQUEEZED_MANY = 1000


class Floor(msgspec.Struct, frozen=True):
    """A sysctl that is raised to `value` where it is lower, and never lowered."""

    name: str
    value: int
    why: str
    risk: str
    when: str = "always"
    """"rps": only where packets are moved between CPUs; "squeezed": only where polls end with
    work left."""


class Profile(msgspec.Struct, frozen=True):
    """One kind of traffic."""

    name: str
    about: str
    adaptive: bool = True
    """Let the card choose its interrupt rate where it can."""
    fixed_usecs: int = 333
    """rx-usecs where it cannot, in µs. 333 was nic.sh's value in 2014: 3,000 interrupts a second
    and queue."""
    rx_ring: int = 2048
    """Receive descriptors at least, where the card has as many; 0 = leave."""
    flow_entries: int = 0
    """Size of the RFS table (a power of two, as the kernel rounds it); 0 = no RFS."""
    slices: bool = False
    """Steer replies of backends to the CPU whose slice of local ports they answer to."""
    floors: tuple[Floor, ...] = ()


_ACCEPT = (
    Floor(
        "net.core.somaxconn",
        16384,
        "a listening socket queues at most this many connections, whatever the server asks for",
        "a server that asks for more than it can serve queues longer instead of refusing",
    ),
    Floor(
        "net.ipv4.tcp_max_syn_backlog",
        16384,
        "a burst of new connections must not look like a SYN flood",
        "about 300 bytes of memory for each half-open connection",
    ),
)
_PATH = (
    Floor(
        "net.ipv4.ip_early_demux",
        1,
        "finds the socket, and with it the route, of an established connection early",
        "none for a server; a pure router is a little slower",
    ),
    Floor(
        "net.ipv4.tcp_early_demux",
        1,
        "Direct-TCP of today: one lookup for the socket and its route",
        "none for a server; a pure router is a little slower",
    ),
    Floor(
        "net.core.skb_defer_max",
        64,  # the kernel's own value since 39564c3fdc66 (v5.19)
        "Skb-Pool of today: a buffer goes back to the CPU that took it, for the next packet there",
        "up to 64 freed buffers a CPU wait for that CPU; half as many wake it by an interrupt",
    ),
)
_RECEIVE = (
    Floor(
        "net.core.netdev_max_backlog",
        10000,
        "packets that are moved to another CPU wait in that CPU's backlog",
        "memory of the packets while a CPU is late",
        when="rps",
    ),
    Floor(
        "net.core.netdev_budget",
        600,
        "polls end with work left (softnet_stat counts it)",
        "a poll may keep its CPU longer from the server",
        when="squeezed",
    ),
)

PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            "short",
            "many short connections: web servers, APIs",
            floors=_ACCEPT + _PATH + _RECEIVE,
        ),
        Profile(
            "proxy",
            "short connections, each with one to a backend",
            slices=True,
            floors=_ACCEPT + _PATH + _RECEIVE,
        ),
        Profile(
            "long",
            "connections that live for minutes: websockets, databases, streams",
            flow_entries=32768,
            floors=_ACCEPT + _PATH + _RECEIVE,
        ),
        Profile(
            "latency",
            "few bytes, quick answers, CPU time to spare",
            adaptive=False,
            # igb takes nothing between 3 and 10; i40e and ice round to even numbers.
            fixed_usecs=10,
            # A long ring under load is a long queue.
            rx_ring=0,
            floors=_ACCEPT + _PATH + _RECEIVE,
        ),
    )
}


def find_profile(name: str) -> Profile:
    """Return a profile by its name.

    Raises:
        UsageError: There is no such profile.
    """
    if name not in PROFILES:
        raise UsageError(f"there is no profile {name}", "", f"choose one of {', '.join(PROFILES)}")
    return PROFILES[name]
