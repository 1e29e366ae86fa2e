# SPDX-License-Identifier: GPL-2.0-or-later
"""The words in which plans are written: settings, changes to them, and notes."""

from typing import Literal

import msgspec

__all__ = ["COMING", "ORDER", "RESETTING", "Change", "Note", "Plan", "Request", "Setting", "change"]

# The order in which kinds of settings are changed: what makes the card start anew comes before
# what it would forget by that.
ORDER = (
    "feature",
    "channels",
    "ring",
    "rss",
    "coalesce",
    "rule",
    "irqbalance",
    "irq",
    "rps",
    "rfs",
    "xps",
    "sysctl",
    "notrack",
)
# What stands for the value of a queue's setting before there is that queue.
COMING = "not there yet"
# Kinds that may make the card start anew, and forget settings of the other kinds.
RESETTING = frozenset({"feature", "channels", "ring"})


class Setting(msgspec.Struct, frozen=True, order=True):
    """One value that can be read and written.

    ========== =============================== =============================================
    kind       name                            value
    ========== =============================== =============================================
    feature    the kernel's name               on, off
    channels   combined, rx, tx                number
    ring       rx, tx                          descriptors
    rss        indirection                     "equal N", or the table with commas
    coalesce   the name in ethtool(8)          number
    rule       location                        a `FlowRule` as text; empty = none
    irqbalance ban                             interrupts of the card (rx-0,tx-0,…) left alone
    irq        rx-N: serves receive queue N    CPU list
               (and perhaps sends), tx-N:
               serves transmit queue N alone
    rps        receive queue                   CPU list
    rfs        receive queue                   flows
    xps        transmit queue                  CPU list
    sysctl     name with dots                  text, words separated by one blank
    notrack    ports                           TCP ports with commas
    ========== =============================== =============================================
    """

    kind: str
    interface: str
    """Empty for what belongs to no interface: sysctl, notrack."""
    name: str

    def __str__(self) -> str:
        """Return the key under which the journal keeps it."""
        return f"{self.kind} {self.interface or '-'} {self.name}"

    @classmethod
    def parse(cls, text: str) -> "Setting":
        """Return the setting of a key that `str` made."""
        kind, interface, name = text.split(" ", 2)
        return cls(kind, "" if interface == "-" else interface, name)

    @property
    def what(self) -> str:
        """What it is in plain words."""
        queue = f"{self.interface} queue {self.name}"
        words = {
            "feature": f"{self.interface} offload {self.name}",
            "channels": f"{self.interface} channels ({self.name})",
            "ring": f"{self.interface} {self.name} ring",
            "rss": f"{self.interface} RSS table",
            "coalesce": f"{self.interface} {self.name}",
            "rule": f"{self.interface} flow rule {self.name}",
            "irqbalance": f"irqbalance leaves alone ({self.interface})",
            "irq": f"{self.interface} interrupt of {self.name}",
            "rps": f"{queue} RPS",
            "rfs": f"{queue} RFS flows",
            "xps": f"{queue} XPS",
            "sysctl": self.name,
            "notrack": "TCP ports without connection tracking",
        }
        return words[self.kind]


class Change(msgspec.Struct, frozen=True, rename={"old": "from", "new": "to"}):
    """One line of a plan."""

    setting: Setting
    what: str
    old: str
    """Value now, or `COMING`."""
    new: str
    why: str
    risk: str


def change(setting: Setting, old: str, new: str, why: str, risk: str) -> Change:
    """Return a line of a plan, with the setting's own words for what it is."""
    return Change(setting, setting.what, old, new, why, risk)


class Note(msgspec.Struct, frozen=True):
    """Something to know that the plan does not change."""

    level: Literal["info", "warning"]
    what: str
    why: str
    todo: str = ""


class Plan(msgspec.Struct, frozen=True):
    """What would be changed for one interface, in the order of the changes."""

    target: str
    profile: str
    changes: tuple[Change, ...]
    notes: tuple[Note, ...] = ()


class Request(msgspec.Struct, frozen=True):
    """What the user asks for."""

    profile: str = "short"
    ports: tuple[int, ...] = ()
    """TCP ports of the server."""
    cpus: tuple[int, ...] | None = None
    """CPUs to use; None = all that this process may use."""
    skip: tuple[str, ...] = ()
    """Kinds of settings to leave alone."""
