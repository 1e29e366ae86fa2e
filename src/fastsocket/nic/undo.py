# SPDX-License-Identifier: GPL-2.0-or-later
"""Restores what was there before the first plan was applied, from the journal alone."""

import msgspec

from fastsocket.errors import FastsocketError
from fastsocket.nic.changes import Setting
from fastsocket.nic.journal import Journal, Store
from fastsocket.nic.live import Host
from fastsocket.nic.restore import Outcome, Progress, foreign_settings, restore, silent

__all__ = ["preview", "still_there", "undo", "undo_locked"]

# What queues that come back with the channels begin with: no RPS, no RFS, no XPS.
_FRESH = {"rps": "", "rfs": "0", "xps": ""}


def undo(
    host: Host, store: Store, target: str, *, force: bool = False, progress: Progress = silent
) -> Outcome | None:
    """Undo the plan of an interface; None where nothing is applied.

    `force` also restores what somebody else changed since.

    Raises:
        FastsocketError: A setting could not be restored; the journal stays for another attempt.
    """
    with store.lock():
        return undo_locked(host, store, target, force=force, progress=progress)


def undo_locked(
    host: Host, store: Store, target: str, *, force: bool, progress: Progress
) -> Outcome | None:
    """Do the work of `undo` for a caller that holds the lock."""
    recorded = store.load(target)
    if recorded is None:
        return None
    journal = still_there(host, recorded)
    lost = [Setting.parse(key) for key in recorded.wanted]
    if journal is None:
        store.remove(target)
        return Outcome(gone=lost)
    _hand_over(store, journal)
    keep = {} if force else foreign_settings(host, journal)
    journal.state = "undoing"
    store.save(journal)
    values = {Setting.parse(key): value for key, value in journal.before.items()}
    outcome = restore(host, values, keep, progress)
    outcome.gone = [one for one in outcome.gone if str(one) in recorded.wanted]
    outcome.gone += [one for one in lost if str(one) not in journal.wanted]
    if outcome.failed:
        raise FastsocketError(
            f"{len(outcome.failed)} settings of {target} could not be restored",
            next(iter(outcome.failed.values())),
            f"run 'fastsocket nic undo -i {target}' again when that is mended",
        )
    store.remove(target)
    return outcome


def preview(host: Host, store: Store, target: str, *, force: bool) -> dict[Setting, str]:
    """Return what `undo` would write, as far as it can be told before a card starts anew.

    Queues that are to come back are left out where that alone makes them right.
    """
    recorded = store.load(target)
    journal = still_there(host, recorded) if recorded else None
    if journal is None:
        return {}
    keep = {} if force else foreign_settings(host, journal)
    values = {Setting.parse(key): value for key, value in journal.before.items()}
    now = {setting: host.read(setting) for setting in values}
    return {
        setting: value
        for setting, value in values.items()
        if setting not in keep and now[setting] != value
        if now[setting] is not None or value != _FRESH.get(setting.kind)
    }


def still_there(host: Host, journal: Journal) -> Journal | None:
    """Return the part of a journal that still says something about this host.

    Nothing after a reboot: the settings began anew. For a card that was unplugged and is back
    only what does not belong to the card.
    """
    if journal.boot != host.boot_id():
        return None
    names = {
        name for name, number in journal.interfaces.items() if host.ifindex(name) == number
    } | {""}
    if names >= set(journal.interfaces):
        return journal

    def stays(values: dict[str, str]) -> dict[str, str]:
        return {
            key: value for key, value in values.items() if Setting.parse(key).interface in names
        }

    return msgspec.structs.replace(
        journal,
        interfaces={name: index for name, index in journal.interfaces.items() if name in names},
        before=stays(journal.before),
        wanted=stays(journal.wanted),
        after=stays(journal.after),
    )


def _hand_over(store: Store, journal: Journal) -> None:
    """Leave what other interfaces' plans share with this one to them.

    A plan that was applied after this one found the value that this one left: it gets the value
    from before this one, so that the last to be undone restores what was there first.
    """
    for other in store.others(journal.target):
        shared = [
            key
            for key, before in journal.before.items()
            if not Setting.parse(key).interface
            and journal.after.get(key, before) != before
            and other.before.get(key) == journal.after[key]
        ]
        for key in shared:
            other.before[key] = journal.before.pop(key)
        if shared:
            store.save(other)
