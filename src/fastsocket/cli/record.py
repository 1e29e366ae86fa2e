# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket record`: hours of samples in a small file."""

import json
import re
from pathlib import Path

import click

from fastsocket.errors import UsageError
from fastsocket.observe.applications import Applications
from fastsocket.observe.host import HostSource
from fastsocket.observe.record import Stop, describe, record, stop_on_signals
from fastsocket.observe.recording import Recorder
from fastsocket.observe.steering import steering_counters

__all__ = ["command", "seconds"]

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> float:
    """Return a duration such as 90, 1.5s, 30m, 24h or 7d in seconds.

    Raises:
        UsageError: It is no duration, or not above zero.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    value = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if value <= 0:
        raise UsageError(f"'{text}' is no duration", "", "write 90, 1.5s, 30m, 24h or 7d")
    return value


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--interval", default="5s", show_default=True, help="Time between samples.")
@click.option("--duration", default="24h", show_default=True, help="How long.")
@click.option("--json", "as_json", is_flag=True, help="Say in JSON what was recorded.")
def command(file: Path, interval: str, duration: str, *, as_json: bool) -> None:
    """Record the use of every CPU and the counters of every accelerated application.

    Stop it with Ctrl-C at any time: what was recorded stays. A file is never overwritten.
    """
    every, length = seconds(interval), seconds(duration)
    recorder, stop = Recorder(file, describe(every)), Stop()
    try:
        with stop_on_signals(stop):
            source = HostSource(Applications(rescan=60).read, steering_counters)
            record(source, recorder.add, every, length, stop)
    finally:
        recorder.close()
    size = file.stat().st_size
    if as_json:
        click.echo(json.dumps({"file": str(file), "samples": recorder.samples, "bytes": size}))
    else:
        click.echo(f"{file}: {recorder.samples} samples in {size:,} bytes", err=True)
        click.echo(f"next: fastsocket report {file} -o {file.with_suffix('.html')}", err=True)
