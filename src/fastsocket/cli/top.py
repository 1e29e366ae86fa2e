# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket top`: the live view, of this host or of a recording."""

import json
import sys
import time
from pathlib import Path

import click
import msgspec

from fastsocket.cli.record import seconds
from fastsocket.errors import FastsocketError, MissingFeatureError, UsageError
from fastsocket.observe.applications import Applications
from fastsocket.observe.host import HostSource
from fastsocket.observe.recording import Recording
from fastsocket.observe.sample import Source, rates
from fastsocket.observe.steering import steering_counters

__all__ = ["command"]


@click.command()
@click.option("--interval", default="1s", show_default=True, help="Time between samples.")
@click.option("--replay", type=click.Path(path_type=Path), help="Show a recording instead.")
@click.option("--json", "as_json", is_flag=True, help="Print the rates of one interval and end.")
def command(interval: str, replay: Path | None, *, as_json: bool) -> None:
    """Watch every CPU, every worker, and where connections go.

    CPUs show how busy they are, and how much of it is softirq; workers show live connections,
    accepts and takeovers per second, queued connections, and whether they are stalled.
    """
    every = seconds(interval)
    live = HostSource(Applications(rescan=5).read, steering_counters)
    source: Source = live if replay is None else Recording(replay)
    if as_json:
        _print_once(source, 0.0 if replay else every)
        return
    if not sys.stdout.isatty() or not sys.stdin.isatty():
        raise UsageError("top needs a terminal", "its input or output is none", "use 'top --json'")
    try:
        from fastsocket.observe.screen import LiveView
    except ImportError as error:
        raise MissingFeatureError(
            "the live view cannot be shown", str(error), "pip install 'fastsocket[top]'"
        ) from error
    name = "this host" if replay is None else replay.name
    LiveView(source, every, name).run()


def _print_once(source: Source, every: float) -> None:
    """Print the rates between the next two samples."""
    before = source.read()
    time.sleep(every)
    after = source.read()
    if before is None or after is None:
        raise FastsocketError("there are fewer than two samples", "", "record for longer")
    found = rates(before, after)
    document = msgspec.to_builtins(found)
    document["slots"] = [
        {
            "app": use.listener.app,
            "address": use.listener.address,
            "port": use.listener.port,
            "tier": use.listener.tier,
            "slot": use.slot.slot,
            "pid": use.slot.pid,
            "cpu": None if use.slot.cpu < 0 else use.slot.cpu,
            "state": use.slot.state,
            "live": use.slot.live,
            "waiting": use.slot.waiting,
            "accepts": use.accepts,
            "spills": use.spills,
            "stalled": use.stalled,
        }
        for use in found.slots
    ]
    document["local_percent"] = found.local_percent
    click.echo(json.dumps(document))
