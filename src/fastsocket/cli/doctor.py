# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket doctor`: would it help here? A verdict with its reasons."""

import click
import msgspec

from fastsocket.host.doctor import Diagnosis, diagnose
from fastsocket.host.sample import host_facts, server_facts, take_load

__all__ = ["command"]


@click.command()
@click.argument("pid", type=click.IntRange(min=1), required=False)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1, max=3600.0),
    default=2.0,
    show_default=True,
    help="How long to watch the host.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(pid: int | None, seconds: float, as_json: bool) -> None:
    """Say whether Fastsocket would help this host, or the server with this PID, and why.

    Run it while the host serves its usual load; it only reads.
    """
    server = None if pid is None else server_facts(pid)
    host = host_facts(pid=pid)
    load = take_load(seconds, pid)
    diagnosis = diagnose(host, load, server)
    if as_json:
        document = {
            "verdict": diagnosis.verdict,
            "reasons": diagnosis.reasons,
            "checks": diagnosis.checks,
            "host": host,
            "load": load,
            "server": server,
        }
        click.echo(msgspec.json.encode(document))
        return
    _show(diagnosis, "this server" if server else "this host")


def _show(diagnosis: Diagnosis, subject: str) -> None:
    """Print the checks, then the verdict, then what to type next."""
    width = max(len(check.name) for check in diagnosis.checks)
    for check in diagnosis.checks:
        click.echo(f"{check.grade:8}{check.name:{width}}  {check.found}: {check.why}")
        if check.todo:
            click.echo(f"{'':{8 + width}}  -> {check.todo}")
    click.echo(f"Would Fastsocket help {subject}? {diagnosis.verdict.capitalize()}.")
    for reason in diagnosis.reasons:
        click.echo(f"  {reason}")
    click.echo("next: 'fastsocket bench short' measures it on this host")
