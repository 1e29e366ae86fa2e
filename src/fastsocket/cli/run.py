# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket run -- CMD`: start a server accelerated."""

from pathlib import Path

import click

from fastsocket.app.launcher import launch
from fastsocket.config import checked
from fastsocket.errors import UsageError
from fastsocket.host.params import host_parameters

__all__ = ["command"]


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--profile", metavar="NAME", help="Start from what suits this application.")
@click.option("--config", type=click.Path(path_type=Path), help="Read this instead of the host's.")
@click.option(
    "--listen-spawn",
    type=click.IntRange(0, 2),
    help="0 off, 1 the application pins its workers, 2 Fastsocket pins them (default).",
)
@click.option(
    "--receive-flow-deliver/--no-receive-flow-deliver",
    default=None,
    help="Local ports of outgoing connections tell the CPU that opened them.",
)
@click.option(
    "--fast-epoll/--no-fast-epoll",
    default=None,
    help="epoll_ctl calls wait for the next wait for events, and are merged until then.",
)
@click.option(
    "--local-fast-path",
    metavar="PORT",
    type=click.IntRange(1, 65535),
    help="Connections within this host to PORT skip TCP and IP.",
)
@click.option(
    "--lean",
    type=click.Choice(["auto", "off"]),
    help="auto learns per listener which segments a connection can do without.",
)
@click.option(
    "--defer-accept/--no-defer-accept",
    default=None,
    help="With --lean auto: a server that reads first learns of a connection with its request.",
)
@click.option(
    "--fast-open/--no-fast-open",
    default=None,
    help="With --lean auto: TCP Fast Open, for requests that may safely come twice.",
)
@click.option(
    "--batch/--no-batch",
    default=None,
    help="SCHED_BATCH: where clients run on the same CPUs, it does not interrupt them.",
)
@click.option(
    "--busy-poll",
    metavar="US",
    type=click.IntRange(0, 1000),
    help="epoll_wait looks for events for US microseconds before it sleeps.",
)
@click.argument("cmd", nargs=-1, type=click.UNPROCESSED)
def command(
    profile: str | None,
    config: Path | None,
    listen_spawn: int | None,
    receive_flow_deliver: bool | None,
    fast_epoll: bool | None,
    local_fast_path: int | None,
    lean: str | None,
    defer_accept: bool | None,
    fast_open: bool | None,
    batch: bool | None,
    busy_poll: int | None,
    cmd: tuple[str, ...],
) -> None:
    """Start CMD accelerated; it keeps the PID, the terminal, signals and the exit code."""
    if not cmd:
        raise UsageError("no command given", todo="try 'fastsocket run -- nginx'")
    parameters = host_parameters(config)
    if profile is not None:
        from fastsocket.profile import load_profile  # its schema library is slow to import

        known = load_profile(profile)
        parameters = checked(known.parameters, f"profile {profile}", parameters)
        cmd = tuple(known.command(cmd))
    given = {
        "enable_listen_spawn": listen_spawn,
        "enable_receive_flow_deliver": receive_flow_deliver,
        "enable_fast_epoll": fast_epoll,
        "lean": lean,
        "defer_accept": defer_accept,
        "fast_open": fast_open,
        "batch": batch,
        "busy_poll_us": busy_poll,
    }
    flags = {
        name: int(value) if isinstance(value, bool) else value
        for name, value in given.items()
        if value is not None
    }
    launch(cmd, checked(flags, "the command line", parameters), local_fast_path)
