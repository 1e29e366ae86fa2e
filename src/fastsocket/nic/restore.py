# SPDX-License-Identifier: GPL-2.0-or-later
"""Brings settings back to recorded values; the half that rollback and undo share."""

import errno
from collections.abc import Callable, Mapping

import msgspec

from fastsocket.errors import FastsocketError, MissingFeatureError
from fastsocket.nic.changes import ORDER, RESETTING, Setting
from fastsocket.nic.journal import Journal
from fastsocket.nic.live import Host

__all__ = ["Outcome", "Progress", "foreign_settings", "restore", "silent", "write_checked"]

Progress = Callable[[Setting, str], None]
"""Called with a setting and its value to come before each change."""


def silent(setting: Setting, value: str) -> None:
    """Report no progress."""


# Settings depend on each other in both directions (channels cannot go below what the RSS table and
# the flow rules name, and resetting them makes the card forget those): what fails or is lost in
# the first pass is right after the second.
_PASSES = 2
_DENIED = frozenset({errno.EPERM, errno.EACCES, errno.EROFS})


class Outcome(msgspec.Struct):
    """What a restoration did."""

    restored: list[Setting] = []
    gone: list[Setting] = []
    """No longer there: unplugged, or lost with a reboot."""
    foreign: dict[str, str] = {}
    """Settings that somebody else changed since, with their values; left alone."""
    failed: dict[str, str] = {}
    """Settings that could not be restored, with the reason."""


def write_checked(host: Host, setting: Setting, value: str) -> None:
    """Write a setting and read it back.

    Raises:
        MissingFeatureError: A privilege is missing, or the file is read-only.
        FastsocketError: The host refused the value, or made another one of it.
    """
    try:
        carrier = host.carrier(setting.interface) if setting.kind in RESETTING else False
        host.write(setting, value)
        if setting.kind in RESETTING:
            host.settle(setting.interface, carrier=carrier)
    except (OSError, KeyError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not there any more"
        denied = isinstance(error, OSError) and error.errno in _DENIED
        kind = MissingFeatureError if denied else FastsocketError
        raise kind(
            f"{setting.what} cannot be set to {value or 'nothing'}",
            str(reason),
            f"leave it out with '--skip {setting.kind}'",
        ) from error
    found = host.read(setting)
    if found != value:
        raise FastsocketError(
            f"{setting.what}: {value or 'nothing'} was set and {found or 'nothing'} came of it",
            "the driver or another program changed the value",
            f"leave it out with '--skip {setting.kind}'",
        )


def foreign_settings(host: Host, journal: Journal) -> dict[Setting, str]:
    """Return the settings of a journal that are neither as before nor as we left them.

    Where a crash cut the work short, what a card may forget when it starts anew is taken for ours.
    """
    finished = journal.state == "applied"
    forgetful = any(Setting.parse(key).kind in RESETTING for key in journal.wanted)
    found: dict[Setting, str] = {}
    for key, before in journal.before.items():
        setting = Setting.parse(key)
        value = host.read(setting)
        ours = {before, journal.after.get(key, before)}
        if not finished:
            ours.add(journal.wanted.get(key, before))
        if value is None or value in ours or (forgetful and not finished and setting.interface):
            continue
        found[setting] = value
    return found


def restore(
    host: Host,
    values: Mapping[Setting, str],
    keep: Mapping[Setting, str],
    progress: Progress,
) -> Outcome:
    """Write back `values`, as far as they differ now; those in `keep` get the value there.

    Never stops at an error: what cannot be restored is in the outcome.
    """
    outcome = Outcome(foreign={str(setting): value for setting, value in keep.items()})
    target = {**values, **keep}
    order = sorted(target, key=lambda one: (ORDER.index(one.kind), one))
    restored: dict[Setting, None] = {}
    for _ in range(_PASSES):
        outcome.failed, outcome.gone = {}, []
        for setting in order:
            current = host.read(setting)
            if current == target[setting]:
                continue
            if current is None:
                outcome.gone.append(setting)
                continue
            progress(setting, target[setting])
            try:
                write_checked(host, setting, target[setting])
            except FastsocketError as error:
                outcome.failed[str(setting)] = str(error)
            else:
                restored[setting] = None
    outcome.restored = list(restored)
    return outcome
