# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket nic`: the network card's settings, shown, planned, applied and undone."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from fastsocket.cli.fold import fold
from fastsocket.errors import MissingFeatureError, UsageError
from fastsocket.host.cpulist import parse_list
from fastsocket.nic.changes import COMING, ORDER, Plan, Request, Setting
from fastsocket.nic.facts import HostFacts, load_facts, save_facts
from fastsocket.nic.plan import make_plan
from fastsocket.nic.profiles import PROFILES
from fastsocket.nic.text import facts_text, plan_text

if TYPE_CHECKING:
    from fastsocket.nic.journal import Store

__all__ = ["command"]

_interface = click.option("-i", "--interface", required=True, metavar="IF", help="The interface.")
_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
_dry_run = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
_force = click.option(
    "--force", is_flag=True, help="Also touch what somebody else changed since the last time."
)
_state = click.option(
    "--state", type=click.Path(path_type=Path), help="Folder of the journals.", metavar="DIR"
)


def _request_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--skip", multiple=True, metavar="KIND", help=f"Leave out: {', '.join(ORDER)}."
        ),
        click.option("--cpus", metavar="LIST", help="CPUs to use, such as 0-3,8."),
        click.option(
            "--port",
            "ports",
            multiple=True,
            type=click.IntRange(1, 65535),
            help="A TCP port of the server, to exempt from connection tracking; can be repeated.",
        ),
        click.option(
            "--profile",
            default="short",
            show_default=True,
            metavar="NAME",
            help="; ".join(f"{profile.name}: {profile.about}" for profile in PROFILES.values()),
        ),
    ):
        function = option(function)
    return function


@click.group(name="nic")
def command() -> None:
    """Show, plan, apply and undo the network card's settings."""


@command.command()
@_interface
@click.option("--save", type=click.Path(path_type=Path), metavar="FILE", help="Save all facts.")
@_as_json
def show(interface: str, save: Path | None, as_json: bool) -> None:
    """Show the card, its queues and interrupts, and what of the host concerns it."""
    facts = _collect(interface)
    if save is not None:
        try:
            save_facts(facts, save)
        except OSError as error:
            raise UsageError(f"{save} cannot be written", str(error.strerror)) from error
    _print(facts if as_json else None, lambda: facts_text(facts))


@command.command()
@click.option("-i", "--interface", metavar="IF", help="The interface.")
@click.option("--facts", type=click.Path(path_type=Path), metavar="FILE", help="Saved facts.")
@_request_options
@_as_json
def plan(
    interface: str | None,
    facts: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Show what `apply` would change, and why."""
    if (interface is None) == (facts is None):
        raise UsageError("name an interface with -i, or saved facts with --facts")
    known = load_facts(facts) if facts is not None else _collect(str(interface))
    made = make_plan(known, _request(**options))
    _print(made if as_json else None, lambda: plan_text(made))


@command.command()
@_interface
@_request_options
@_dry_run
@_force
@_state
@_as_json
@click.pass_context
def apply(
    context: click.Context,
    /,
    *,
    interface: str,
    dry_run: bool,
    force: bool,
    state: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Apply the plan: all of it, or nothing."""
    from fastsocket.nic.apply import apply as apply_plan
    from fastsocket.nic.journal import Store
    from fastsocket.nic.live import LiveHost

    request = _request(**options)

    def make() -> tuple[HostFacts, Plan]:
        facts = _collect(interface)
        return facts, make_plan(facts, request)

    if dry_run:
        _, made = make()
        _print({"dry_run": True, "plan": made} if as_json else None, lambda: plan_text(made))
        return
    _need_root()
    done = apply_plan(
        LiveHost(), Store.of_namespace(state), interface, make, force=force, progress=_say(context)
    )
    document = {
        "dry_run": False,
        "plan": done.plan,
        "foreign": done.foreign,
        "recovered": done.recovered,
    }

    def text() -> str:
        lines = ["an earlier attempt had been cut short and was undone"] if done.recovered else []
        lines.append(plan_text(done.plan))
        lines.extend(
            f"  left alone: {Setting.parse(key).what} was changed to {value or 'nothing'} "
            "by somebody else; --force sets it again"
            for key, value in done.foreign.items()
        )
        if done.plan.changes:
            lines.append(f"applied; 'fastsocket nic undo -i {interface}' takes it back")
        return "\n".join(lines)

    _print(document if as_json else None, text)


@command.command()
@_interface
@_dry_run
@_force
@_state
@_as_json
@click.pass_context
def undo(
    context: click.Context,
    /,
    *,
    interface: str,
    dry_run: bool,
    force: bool,
    state: Path | None,
    as_json: bool,
) -> None:
    """Restore what was there before the first `apply`."""
    from fastsocket.nic.journal import Store
    from fastsocket.nic.live import LiveHost
    from fastsocket.nic.undo import preview
    from fastsocket.nic.undo import undo as undo_plan

    host, store = LiveHost(), Store.of_namespace(state)
    if dry_run:
        lines = preview(host, store, interface, force=force)
        if not lines:
            _check_known(store, interface)
        _print(
            {"dry_run": True, "restore": {str(one): value for one, value in lines.items()}}
            if as_json
            else None,
            lambda: (
                "\n".join(
                    f"{one.what}: {_now(host.read(one))} -> {value or 'none'}"
                    for one, value in lines.items()
                )
                or f"nothing to undo for {interface}"
            ),
        )
        return
    _need_root()
    outcome = undo_plan(host, store, interface, force=force, progress=_say(context))
    if outcome is None:
        _check_known(store, interface)
    document = {
        "dry_run": False,
        "restored": [str(one) for one in outcome.restored] if outcome else [],
        "gone": [str(one) for one in outcome.gone] if outcome else [],
        "foreign": outcome.foreign if outcome else {},
    }

    def text() -> str:
        if outcome is None:
            return f"nothing to undo for {interface}"
        lines = [f"{interface}: {len(outcome.restored)} settings restored"]
        lines.extend(f"  gone, nothing to restore: {one.what}" for one in outcome.gone)
        lines.extend(
            f"  left alone: {Setting.parse(key).what} is {value or 'nothing'}, "
            "somebody else changed it since"
            for key, value in outcome.foreign.items()
        )
        return "\n".join(lines)

    _print(document if as_json else None, text)


def _request(
    profile: str, ports: tuple[int, ...], cpus: str | None, skip: tuple[str, ...]
) -> Request:
    try:
        chosen = parse_list(cpus) if cpus is not None else None
    except ValueError as error:
        raise UsageError(f"{cpus} is no list of CPUs", "", "write it like 0-3,8") from error
    return Request(profile, ports, chosen, skip)


def _collect(interface: str) -> HostFacts:
    # Not at the top: a plan from saved facts needs nothing of this host.
    from fastsocket.nic.collect import collect

    return collect(interface)


def _check_known(store: "Store", interface: str) -> None:
    """Raise `UsageError` where a plan was never applied and there is no such interface either."""
    from fastsocket.nic.collect import check_known

    if store.load(interface) is None:
        check_known(interface)


def _now(value: str | None) -> str:
    return COMING if value is None else value or "none"


def _need_root() -> None:
    if os.geteuid() != 0:
        raise MissingFeatureError(
            "the card's settings cannot be changed", "that needs root", "run it with sudo"
        )


def _say(context: click.Context) -> Callable[[Setting, str], None]:
    """Return what reports each change on stderr when the user asked for more words."""
    verbose = bool((context.obj or {}).get("verbose"))

    def say(setting: Setting, value: str) -> None:
        if verbose:
            click.echo(f"{setting.what} -> {value or 'none'}", err=True)

    return say


def _print(document: Any, text: Callable[[], str]) -> None:
    if document is None:
        click.echo(fold(text()))
    else:
        click.echo(msgspec.json.format(msgspec.json.encode(document), indent=1).decode())
