# SPDX-License-Identifier: GPL-2.0-or-later
"""What is known of drivers and cannot be read from them: data, one row a driver."""

import msgspec

from fastsocket.nic.facts import Nic

__all__ = ["DRIVERS", "Driver", "driver_of", "rss_reach"]

_RESETS = "the card resets: about a second without traffic, and its counters may start anew"


class Driver(msgspec.Struct, frozen=True):
    """Peculiarities of one driver."""

    channels_risk: str = _RESETS
    rings_risk: str = _RESETS
    dynamic_usecs: int = 0
    """Value of rx-usecs that stands for the driver's own adaptive throttling; 0 = none."""
    rss_queues: int = 0
    """Receive queues that RSS reaches, where they are fewer than the channels; 0 = all."""
    rss_exempt: tuple[str, ...] = ()
    """Beginnings of the models without that limit."""
    pairs_vectors: bool = False
    """With several transmit queues, each shares the interrupt of its receive queue."""
    port_masks: bool = False
    """Its flow rules take a mask of a port's bits; most take whole ports only."""
    ntuple_risk: str = "the card stops steering flows by itself"


DRIVERS: dict[str, Driver] = {
    # RSS of the 82599 and X540 has 4 bits of queue number, of the X550 6; the queues above get
    # only what Flow Director sends them (ixgbe_rss_indir_tbl_max(), ixgbe_max_channels()).
    # rx-usecs 1 is its dynamic mode (ixgbe_set_coalesce()).
    "ixgbe": Driver(
        dynamic_usecs=1,
        rss_queues=16,
        rss_exempt=("8086:1563", "8086:15a", "8086:15b", "8086:15c", "8086:15d", "8086:15e"),
        port_masks=True,
        ntuple_risk="the card resets and stops sampling flows by itself (ATR)",
    ),
    # rx-usecs 1 and 3 are dynamic modes; 3 avoids the lowest latency class (igb_set_itr()).
    "igb": Driver(dynamic_usecs=3),
    "igc": Driver(dynamic_usecs=3),
    "e1000e": Driver(dynamic_usecs=3),
    # tg3_request_irq(): vectors are named txrx as soon as there is more than one to send on.
    "tg3": Driver(pairs_vectors=True),
    "mlx5_core": Driver(port_masks=True),
    "virtio_net": Driver(channels_risk="queues stop for a moment; no packet is lost on most hosts"),
    "veth": Driver(channels_risk="packets in flight on queues that go are lost"),
}


def driver_of(nic: Nic) -> Driver:
    """Return the row of the driver; an unknown driver has no peculiarities."""
    return DRIVERS.get(nic.driver, Driver())


def rss_reach(nic: Nic, queues: int) -> int:
    """Return how many of `queues` receive queues RSS can spread packets over."""
    row = driver_of(nic)
    reach = min(queues, len(nic.indirection) or queues)
    if row.rss_queues and not nic.model.startswith(row.rss_exempt or ("-",)):
        reach = min(reach, row.rss_queues)
    return reach
