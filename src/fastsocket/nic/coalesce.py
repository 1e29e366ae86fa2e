# SPDX-License-Identifier: GPL-2.0-or-later
"""The interrupt throttling parameters that a driver supports, through ethtool netlink.

The kernel checks parameters against the set that the driver declares, and its netlink answer
leaves out those that are zero and not in it (net/ethtool/coalesce.c). pyroute2 lacks the message.
"""

from typing import Any

from pyroute2.netlink import NLM_F_REQUEST, genlmsg  # type: ignore[import-untyped]
from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]
from pyroute2.netlink.generic import GenericNetlinkSocket  # type: ignore[import-untyped]
from pyroute2.netlink.generic.ethtool import ethtoolheader  # type: ignore[import-untyped]

__all__ = ["supported_coalesce"]

_COALESCE_GET = 19
_FLAGS = frozenset({"adaptive-rx", "adaptive-tx"})


def supported_coalesce(interface: str, names: tuple[str, ...]) -> dict[str, int]:
    """Return the supported parameters by `names`, which stand in the order of the attributes.

    Raises:
        OSError: There is no such interface, or its driver has no interrupt throttling.
    """

    class Message(genlmsg):  # type: ignore[misc]
        """ETHTOOL_MSG_COALESCE_GET of <linux/ethtool_netlink.h>."""

        nla_map = (
            ("UNSPEC", "none"),
            ("HEADER", "device"),
            *((name, "uint8" if name in _FLAGS else "uint32") for name in names),
        )
        device = ethtoolheader

    message = Message()
    message["cmd"], message["version"] = _COALESCE_GET, 1
    message["attrs"] = [("HEADER", {"attrs": [("ETHTOOL_A_HEADER_DEV_NAME", interface)]})]
    try:
        with GenericNetlinkSocket() as netlink:
            netlink.bind("ethtool", Message)
            replies = netlink.nlm_request(message, netlink.prid, NLM_F_REQUEST)
            found: dict[str, Any] = dict(next(iter(replies))["attrs"])
    except NetlinkError as error:
        raise OSError(error.code, str(error)) from error
    return {name: int(found[name]) for name in names if name in found}
