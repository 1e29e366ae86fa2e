# SPDX-License-Identifier: GPL-2.0-or-later
"""Applies a plan: all of it or nothing. The journal is on disk before the first change."""

from collections.abc import Callable
from typing import NoReturn

import msgspec

from fastsocket.errors import ConflictError, FastsocketError
from fastsocket.nic.changes import RESETTING, Plan, Setting
from fastsocket.nic.facts import HostFacts
from fastsocket.nic.journal import Journal, Store
from fastsocket.nic.live import Host
from fastsocket.nic.profiles import find_profile
from fastsocket.nic.restore import Progress, restore, silent, write_checked
from fastsocket.nic.undo import still_there, undo_locked

__all__ = ["Applied", "apply"]


class Applied(msgspec.Struct):
    """What applying a plan did."""

    plan: Plan
    """The plan, with the changes that were made."""
    foreign: dict[str, str] = {}
    """Settings of ours that somebody else changed since the last time, with their values."""
    recovered: bool = False
    """An earlier attempt had been cut short, and was undone first."""


def apply(
    host: Host,
    store: Store,
    target: str,
    make: Callable[[], tuple[HostFacts, Plan]],
    *,
    force: bool = False,
    progress: Progress = silent,
) -> Applied:
    """Make a plan and apply it.

    `make` is called once no other process can change settings. `force` also sets what somebody
    else changed after the last time. `progress` is called before every change.

    Raises:
        ConflictError: An interface is down, or stands under another target's plan.
        FastsocketError: A change was refused; everything is as before.
    """
    with store.lock():
        journal = store.load(target)
        recovered = journal is not None and journal.state != "applied"
        if recovered:
            undo_locked(host, store, target, force=False, progress=progress)
        journal = None if recovered or journal is None else still_there(host, journal)
        facts, plan = make()
        _check(facts, store, target, plan)
        foreign = {} if force or journal is None else _foreign(host, plan, journal)
        changes = tuple(line for line in plan.changes if str(line.setting) not in foreign)
        plan = msgspec.structs.replace(plan, changes=changes)
        if changes:
            _Work(host, store, facts, plan, progress).run(journal)
        return Applied(plan, foreign, recovered)


def _check(facts: HostFacts, store: Store, target: str, plan: Plan) -> None:
    touched = {line.setting.interface for line in plan.changes}
    for nic in facts.cards:
        if nic.name in touched and not nic.up:
            raise ConflictError(
                f"{nic.name} is down",
                "its queues and interrupts come with the link",
                f"run 'ip link set {nic.name} up' first",
            )
    names = {nic.name for nic in facts.cards}
    for other in store.others(target):
        if shared := sorted(names & set(other.interfaces)):
            raise ConflictError(
                f"{shared[0]} stands under the plan of {other.target}",
                "",
                f"run 'fastsocket nic undo -i {other.target}' first",
            )


def _foreign(host: Host, plan: Plan, journal: Journal) -> dict[str, str]:
    """Return the lines of a new plan that were applied before and have changed since."""
    keys = [str(line.setting) for line in plan.changes]
    return {
        key: host.read(Setting.parse(key)) or ""
        for key in keys
        if key in journal.wanted and key in journal.after
    }


class _Work:
    """One plan on its way."""

    def __init__(
        self, host: Host, store: Store, facts: HostFacts, plan: Plan, progress: Progress
    ) -> None:
        self._host, self._store, self._plan, self._progress = host, store, plan, progress
        self._cards = {nic.name: nic.ifindex for nic in facts.cards}
        # What other interfaces' plans may share with this one is recorded also where it is right
        # already, so that the last plan to be undone restores the first value.
        floors = find_profile(plan.profile).floors
        self._shared = [
            Setting("sysctl", "", floor.name) for floor in floors if floor.name in facts.sysctls
        ]
        if facts.netfilter.notrack_ports:
            self._shared.append(Setting("notrack", "", "ports"))

    def run(self, journal: Journal | None) -> None:
        """Change everything, or restore everything and raise the error."""
        before = self._snapshot()
        fresh = Journal(
            target=self._plan.target,
            interfaces=self._cards,
            boot=self._host.boot_id(),
            state="applying",
            profile=self._plan.profile,
            before=_original(journal, before),
            wanted={str(line.setting): line.new for line in self._plan.changes},
        )
        if journal is not None:
            fresh.wanted = {**journal.wanted, **fresh.wanted}
            fresh.after = journal.after
        self._store.save(fresh)
        try:
            self._write(before)
            fresh.after = {str(setting): value for setting, value in self._snapshot().items()}
            fresh.state = "applied"
            self._store.save(fresh)
        except (FastsocketError, KeyboardInterrupt) as error:
            self._roll_back(journal, before, error)

    def _snapshot(self) -> dict[Setting, str]:
        """Return the values of all settings of the cards, and of those that the plan names."""
        settings = dict.fromkeys(one for name in self._cards for one in self._host.settings(name))
        settings.update(dict.fromkeys(self._shared))
        settings.update(dict.fromkeys(line.setting for line in self._plan.changes))
        values = {setting: self._host.read(setting) for setting in settings}
        return {setting: value for setting, value in values.items() if value is not None}

    def _write(self, before: dict[Setting, str]) -> None:
        host = self._host
        wanted = {line.setting: line.new for line in self._plan.changes}
        resetting = [setting for setting in wanted if setting.kind in RESETTING]
        for setting in resetting:
            self._progress(setting, wanted[setting])
            write_checked(host, setting, wanted[setting])
        if resetting:
            # What a card forgot by starting anew, and is not in the plan because it was right.
            # The driver spreads its RSS table over the new number of queues itself.
            names = {setting.interface for setting in resetting}
            for setting, value in before.items():
                if setting.interface in names and setting.kind != "rss":
                    wanted.setdefault(setting, value)
        for setting, value in wanted.items():
            current = host.read(setting)
            if setting in resetting or current == value:
                continue
            if resetting and current is None:
                # It went with the queues that went, or never came: tg3 has an interrupt for a
                # transmit queue only as long as there is one such queue.
                continue
            self._progress(setting, value)
            write_checked(host, setting, value)
        for line in self._plan.changes:
            if (found := host.read(line.setting)) not in (line.new, None):
                raise FastsocketError(
                    f"{line.what} was set to {line.new or 'nothing'}, "
                    f"and is {found or 'nothing'} now",
                    "another program changes it",
                    f"stop that program, or leave it out with '--skip {line.setting.kind}'",
                )

    def _roll_back(
        self,
        journal: Journal | None,
        before: dict[Setting, str],
        error: FastsocketError | KeyboardInterrupt,
    ) -> NoReturn:
        """Restore what was there before this plan, and raise the error that made it necessary."""
        target = self._plan.target
        outcome = restore(self._host, before, {}, silent)
        if outcome.failed:
            raise FastsocketError(
                str(error) or "interrupted",
                f"and restoring failed: {next(iter(outcome.failed.values()))}",
                f"run 'fastsocket nic undo -i {target}' when that is mended",
            ) from error
        restored = "everything is as before"
        try:
            if journal is None:
                self._store.remove(target)
            else:
                self._store.save(journal)
        except FastsocketError as failure:
            restored += (
                f", but the journal could not be written ({failure.why}): "
                f"the next 'fastsocket nic apply -i {target}' undoes earlier ones first"
            )
            if isinstance(error, KeyboardInterrupt):
                raise FastsocketError("interrupted", "", restored) from failure
        if isinstance(error, KeyboardInterrupt):
            raise error
        todo = "; ".join(part for part in (error.todo, restored) if part)
        raise type(error)(error.what, error.why, todo) from error


def _original(journal: Journal | None, before: dict[Setting, str]) -> dict[str, str]:
    """Return what was there before the *first* plan was applied."""
    if journal is None:
        return {str(setting): value for setting, value in before.items()}
    known = {**journal.after, **journal.before}
    new = {
        str(setting): value
        for setting, value in before.items()
        # A queue that the journal does not know came with the channels that we added.
        if setting.interface not in journal.interfaces or setting.kind == "rule"
    }
    return {**journal.before, **{key: value for key, value in new.items() if key not in known}}
