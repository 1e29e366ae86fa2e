# SPDX-License-Identifier: GPL-2.0-or-later
"""The ethtool requests of one interface that the planner needs, through SIOCETHTOOL.

The ioctl serves every kernel from 5.15 on and every driver; only the list of coalescing
parameters that a driver *supports* needs netlink (the ioctl reads unsupported ones as 0).
Layouts: <linux/ethtool.h>. Every method raises `OSError` where the kernel refuses.
"""

import contextlib
import ctypes
import fcntl
import socket
import struct
from types import TracebackType
from typing import Self

import msgspec

__all__ = ["COALESCE_FIELDS", "Ethtool", "FlowRule", "pack_rule", "unpack_rule"]

_SIOCETHTOOL = 0x8946
_GDRVINFO, _GCOALESCE, _SCOALESCE = 0x03, 0x0E, 0x0F
_GRINGPARAM, _SRINGPARAM, _GSTRINGS = 0x10, 0x11, 0x1B
_GRXCLSRLCNT, _GRXCLSRULE, _GRXCLSRLALL = 0x2E, 0x2F, 0x30
_SRXCLSRLDEL, _SRXCLSRLINS, _GSSET_INFO = 0x31, 0x32, 0x37
_GFEATURES, _SFEATURES, _GCHANNELS, _SCHANNELS = 0x3A, 0x3B, 0x3C, 0x3D
_GRSSH, _SRSSH = 0x46, 0x47
_SS_FEATURES, _GSTRING_LEN = 4, 32

# The words of struct ethtool_coalesce after its command, under the names of ethtool(8).
COALESCE_FIELDS = (
    "rx-usecs",
    "rx-frames",
    "rx-usecs-irq",
    "rx-frames-irq",
    "tx-usecs",
    "tx-frames",
    "tx-usecs-irq",
    "tx-frames-irq",
    "stats-block-usecs",
    "adaptive-rx",
    "adaptive-tx",
    "pkt-rate-low",
    "rx-usecs-low",
    "rx-frames-low",
    "tx-usecs-low",
    "tx-frames-low",
    "pkt-rate-high",
    "rx-usecs-high",
    "rx-frames-high",
    "tx-usecs-high",
    "tx-frames-high",
    "sample-interval",
)
_CHANNEL_FIELDS = ("rx", "tx", "other", "combined")
_RING_FIELDS = ("rx", "rx-mini", "rx-jumbo", "tx")

# struct ethtool_rxnfc: cmd, flow_type, data, then ethtool_rx_flow_spec (flow_type, 52 bytes of
# header and 20 of extension, the same as masks, ring_cookie, location), rule_cnt, rule_locs[].
_RXNFC = struct.Struct("=IIQI52s20s52s20s4xQI4xI")
_RXNFC_BYTES = 192
_FLOW_TYPES = {"tcp4": 1, "tcp6": 5}
# Where pdst stands in ethtool_tcpip4_spec and ethtool_tcpip6_spec.
_PORT_OFFSET = {"tcp4": 10, "tcp6": 34}


class FlowRule(msgspec.Struct, frozen=True):
    """A steering rule of the card: matching packets go to a queue."""

    flow: str
    """``tcp4`` or ``tcp6``."""
    port: int
    """Destination port."""
    mask: int
    """Bits of the port that must match."""
    queue: int

    def __str__(self) -> str:
        """Return the rule as the plan prints it."""
        return f"{self.flow} dst-port {self.port} mask {self.mask:#06x} queue {self.queue}"

    @classmethod
    def parse(cls, text: str) -> "FlowRule":
        """Return the rule of a text that `str` made.

        Raises:
            ValueError: The text is no such rule.
        """
        flow, *words = text.split()
        if len(words) != 6 or words[::2] != ["dst-port", "mask", "queue"]:
            raise ValueError(f"no flow rule: {text}")
        return cls(flow, int(words[1]), int(words[3], 16), int(words[5]))


def pack_rule(command: int, location: int, rule: FlowRule) -> bytes:
    """Return struct ethtool_rxnfc for a rule; the destination port is in network byte order."""
    start = _PORT_OFFSET[rule.flow]
    header = bytes(start) + struct.pack(">H", rule.port)
    masks = bytes(start) + struct.pack(">H", rule.mask)
    kind = _FLOW_TYPES[rule.flow]
    packed = _RXNFC.pack(command, kind, 0, kind, header, b"", masks, b"", rule.queue, location, 0)
    return packed.ljust(_RXNFC_BYTES, b"\0")


def unpack_rule(data: bytes) -> FlowRule | None:
    """Return the rule in a struct ethtool_rxnfc; None where it says more than ours can."""
    _, _, _, kind, header, _, masks, mask_extension, queue, _, _ = _RXNFC.unpack_from(data)
    flow = {number: name for name, number in _FLOW_TYPES.items()}.get(kind)
    if flow is None:
        return None
    start = _PORT_OFFSET[flow]
    (port,) = struct.unpack_from(">H", header, start)
    (mask,) = struct.unpack_from(">H", masks, start)
    only_port = (bytes(start) + struct.pack(">H", mask)).ljust(len(masks), b"\0")
    if masks != only_port or any(mask_extension):
        return None
    return FlowRule(flow, port, mask, queue)


class Ethtool:
    """Ethtool requests for the interface `name` in the network namespace of the caller."""

    def __init__(self, name: str) -> None:
        """Open a socket for the ioctl; no request is made yet."""
        self.name = name
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the socket."""
        self._socket.close()

    def _call(self, request: bytes, size: int = 0) -> bytes:
        buffer = ctypes.create_string_buffer(request, max(size, len(request)))
        ifreq = struct.pack("16sP16x", self.name.encode(), ctypes.addressof(buffer))
        fcntl.ioctl(self._socket, _SIOCETHTOOL, ifreq)
        return buffer.raw

    def driver(self) -> tuple[str, str, str]:
        """Return the driver, the firmware version and the bus address."""
        reply = self._call(struct.pack("=I", _GDRVINFO), 196)
        _, driver, _, firmware, bus = struct.unpack_from("=I32s32s32s32s", reply)
        return _string(driver), _string(firmware), _string(bus)

    def channels(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return the numbers of channels in use, and their maxima, by rx, tx, other, combined."""
        words = struct.unpack("=9I", self._call(struct.pack("=I", _GCHANNELS), 36))
        return _named(_CHANNEL_FIELDS, words[5:]), _named(_CHANNEL_FIELDS, words[1:5])

    def set_channels(self, **counts: int) -> None:
        """Set numbers of channels; the others stay as they are."""
        current, _ = self.channels()
        current.update(counts)
        values = (current[name] for name in _CHANNEL_FIELDS)
        self._call(struct.pack("=9I", _SCHANNELS, 0, 0, 0, 0, *values))

    def rings(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return the ring sizes in descriptors, and their maxima."""
        words = struct.unpack("=9I", self._call(struct.pack("=I", _GRINGPARAM), 36))
        return _named(_RING_FIELDS, words[5:]), _named(_RING_FIELDS, words[1:5])

    def set_rings(self, sizes: dict[str, int]) -> None:
        """Set ring sizes; the others stay as they are."""
        current, _ = self.rings()
        current.update(sizes)
        values = (current[name] for name in _RING_FIELDS)
        self._call(struct.pack("=9I", _SRINGPARAM, 0, 0, 0, 0, *values))

    def coalesce(self) -> dict[str, int]:
        """Return the coalescing parameters that the driver supports, by their ethtool(8) names."""
        # Imported here because pyroute2 takes longer to import than all other requests together.
        from fastsocket.nic.coalesce import supported_coalesce

        return supported_coalesce(self.name, COALESCE_FIELDS)

    def set_coalesce(self, values: dict[str, int]) -> None:
        """Set coalescing parameters; the others stay as they are."""
        words = list(struct.unpack("=23I", self._call(struct.pack("=I", _GCOALESCE), 92)))
        for name, value in values.items():
            words[1 + COALESCE_FIELDS.index(name)] = value
        words[0] = _SCOALESCE
        self._call(struct.pack("=23I", *words))

    def features(self) -> dict[str, tuple[bool, bool]]:
        """Return the offloads by the kernel's names: (on, can be changed)."""
        names = self._feature_names()
        blocks = -(-len(names) // 32)
        reply = self._call(struct.pack("=II", _GFEATURES, blocks), 8 + 16 * blocks)
        result = {}
        for index, name in enumerate(names):
            # struct ethtool_get_features_block: available, requested, active, never_changed.
            block = struct.unpack_from("=4I", reply, 8 + 16 * (index // 32))
            bit = 1 << index % 32
            if name:
                result[name] = (bool(block[2] & bit), bool(block[0] & bit and not block[3] & bit))
        return result

    def set_feature(self, name: str, on: bool) -> None:
        """Switch one offload."""
        names = self._feature_names()
        index, blocks = names.index(name), -(-len(names) // 32)
        words = [0] * (2 * blocks)
        # struct ethtool_set_features_block: valid, requested.
        words[2 * (index // 32)] = 1 << index % 32
        words[2 * (index // 32) + 1] = int(on) << index % 32
        self._call(struct.pack(f"=II{2 * blocks}I", _SFEATURES, blocks, *words))

    def _feature_names(self) -> list[str]:
        reply = self._call(struct.pack("=IIQI", _GSSET_INFO, 0, 1 << _SS_FEATURES, 0))
        count = struct.unpack_from("=I", reply, 16)[0]
        request = struct.pack("=III", _GSTRINGS, _SS_FEATURES, count)
        reply = self._call(request, 12 + count * _GSTRING_LEN)
        starts = range(12, 12 + count * _GSTRING_LEN, _GSTRING_LEN)
        return [_string(reply[start : start + _GSTRING_LEN]) for start in starts]

    def indirection(self) -> tuple[tuple[int, ...], str]:
        """Return the RSS indirection table and the hash key in hexadecimal."""
        reply = self._call(struct.pack("=6I", _GRSSH, 0, 0, 0, 0, 0))
        _, _, entries, key_bytes = struct.unpack_from("=4I", reply)
        reply = self._call(
            struct.pack("=6I", _GRSSH, 0, entries, key_bytes, 0, 0), 24 + 4 * entries + key_bytes
        )
        table = struct.unpack_from(f"={entries}I", reply, 24)
        key = reply[24 + 4 * entries : 24 + 4 * entries + key_bytes]
        return table, key.hex()

    def set_indirection(self, table: tuple[int, ...]) -> None:
        """Set the RSS indirection table; an empty one gives the driver's default back."""
        request = struct.pack("=6I", _SRSSH, 0, len(table), 0, 0, 0)
        self._call(request + struct.pack(f"={len(table)}I", *table))

    def rules(self) -> tuple[int, dict[int, FlowRule | None]]:
        """Return how many steering rules fit, and those that are there by location.

        A rule that says more than `FlowRule` can stands as None.
        """
        reply = self._call(struct.pack("=II", _GRXCLSRLCNT, 0), _RXNFC_BYTES)
        count = struct.unpack_from("=I", reply, 184)[0]
        request = bytearray(_RXNFC_BYTES + 4 * count)
        struct.pack_into("=I", request, 0, _GRXCLSRLALL)
        struct.pack_into("=I", request, 184, count)
        reply = self._call(bytes(request))
        # Since ETHTOOL_GRXCLSRLALL, `data` is the size of the table of rules.
        limit = struct.unpack_from("=Q", reply, 8)[0] & 0x7FFFFFFF
        found: dict[int, FlowRule | None] = {}
        for location in struct.unpack_from(f"={count}I", reply, 188):
            query = bytearray(_RXNFC_BYTES)
            struct.pack_into("=I", query, 0, _GRXCLSRULE)
            struct.pack_into("=I", query, 160 + 16, location)
            found[location] = unpack_rule(self._call(bytes(query)))
        return limit, found

    def insert_rule(self, location: int, rule: FlowRule) -> None:
        """Insert a steering rule at a location."""
        self._call(pack_rule(_SRXCLSRLINS, location, rule))

    def delete_rule(self, location: int) -> None:
        """Delete the steering rule at a location; none there is no error."""
        request = bytearray(_RXNFC_BYTES)
        struct.pack_into("=I", request, 0, _SRXCLSRLDEL)
        struct.pack_into("=I", request, 160 + 16, location)
        with contextlib.suppress(FileNotFoundError):
            self._call(bytes(request))


def _string(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode(errors="replace")


def _named(names: tuple[str, ...], values: tuple[int, ...]) -> dict[str, int]:
    return dict(zip(names, values, strict=True))
