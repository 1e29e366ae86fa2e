# SPDX-License-Identifier: GPL-2.0-or-later
"""What netfilter does to every packet here, and a small table of our own that says `notrack`.

The table is written through the nft command, in one transaction; it touches nothing else.
"""

import json
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from fastsocket.errors import FastsocketError, MissingFeatureError
from fastsocket.host.files import read_text
from fastsocket.nic.facts import Netfilter

__all__ = ["read_netfilter", "set_notrack"]

TABLE = "fastsocket_notrack"
_LEGACY = (("ip", "proc/net/ip_tables_names"), ("ip6", "proc/net/ip6_tables_names"))
_TIMEOUT_S = 10


def _nft(*arguments: str, text: str | None = None) -> str | None:
    """Run nft; None where the command is missing, refuses or hangs."""
    command = shutil.which("nft")
    if command is None:
        return None
    try:
        result = subprocess.run(
            [command, *arguments],
            input=text,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    return result.stdout if result.returncode == 0 else None


def read_netfilter(root: Path = Path("/")) -> Netfilter:
    """Return what the network namespace of the caller has loaded."""
    tables: list[str] = []
    listing = _nft("-j", "list", "tables")
    for entry in json.loads(listing or "{}").get("nftables", []):
        if (table := entry.get("table")) and table["name"] != TABLE:
            tables.append(f"{table['family']} {table['name']}")
    for family, name in _LEGACY:
        legacy = read_text(root / name).split()
        tables.extend(f"{family} {table} (legacy)" for table in legacy)
    connections = int(read_text(root / "proc/sys/net/netfilter/nf_conntrack_count") or 0)
    return Netfilter(
        conntrack=connections > 0,
        connections=connections,
        tables=tuple(tables),
        notrack_ports=_notrack_ports(),
        can_notrack=shutil.which("nft") is not None,
        visible=listing is not None,
    )


def _notrack_ports() -> tuple[int, ...]:
    listing = json.loads(_nft("-j", "list", "set", "inet", TABLE, "ports") or "{}")
    for entry in listing.get("nftables", []):
        if "set" in entry:
            return tuple(sorted(int(port) for port in entry["set"].get("elem", [])))
    return ()


def set_notrack(ports: Iterable[int]) -> None:
    """Exempt TCP connections to and from local `ports` from tracking; no port removes our table.

    Raises:
        MissingFeatureError: nft is missing.
        FastsocketError: The kernel refused the table.
    """
    wanted = sorted(set(ports))
    if shutil.which("nft") is None:
        raise MissingFeatureError("notrack needs nft", "not found", "install nftables")
    # "add" before "delete" makes the deletion succeed whether or not the table was there.
    script = f"add table inet {TABLE}\ndelete table inet {TABLE}\n"
    if wanted:
        elements = ", ".join(str(port) for port in wanted)
        script += (
            f"table inet {TABLE} {{\n"
            f" set ports {{ type inet_service; elements = {{ {elements} }} }}\n"
            " chain in { type filter hook prerouting priority raw; tcp dport @ports notrack; }\n"
            " chain out { type filter hook output priority raw; tcp sport @ports notrack; }\n"
            "}\n"
        )
    if _nft("-f", "-", text=script) is None:
        raise FastsocketError(
            "the kernel refused the notrack table", "", "try 'nft list ruleset', or --skip notrack"
        )
