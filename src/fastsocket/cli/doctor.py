# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket doctor`: would it help here, and does it? A verdict with its reasons."""

import click
import msgspec

from fastsocket.errors import UsageError
from fastsocket.host.doctor import Diagnosis, diagnose
from fastsocket.host.sample import host_facts, server_facts, take_load

__all__ = ["command"]

WATCH_SECONDS = 2.0
MEASURE_SECONDS = 5.0


@click.command()
@click.argument("pid", type=click.IntRange(min=1), required=False)
@click.option(
    "--measure",
    metavar="PID|URL",
    help="Count what a running server's connections cost: is it active, and does it help?",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1, max=3600.0),
    help="How long to watch [default: 2; with --measure 5].",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(pid: int | None, measure: str | None, seconds: float | None, as_json: bool) -> None:
    """Say whether Fastsocket would help this host, or the server with this PID, and why.

    Run it while the host serves its usual load; it only reads. With --measure it counts what a
    running server really does, which needs root; to a URL it makes short connections itself.
    """
    if measure is not None:
        if pid is not None:
            raise UsageError("one server at a time", todo="leave out the PID or --measure")
        _measure(measure, seconds or MEASURE_SECONDS, as_json)
        return
    seconds = seconds or WATCH_SECONDS
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


def _measure(what: str, seconds: float, as_json: bool) -> None:
    """Count, and print the counts, the answer and what to type next."""
    from fastsocket.bench.judgement import judge
    from fastsocket.bench.live import count, find_target

    target = find_target(what)
    counts = count(target, seconds)
    judged = judge(counts, target.facts.pid)
    if as_json:
        document = {"server": target.facts, "counts": counts, "judgement": judged}
        click.echo(msgspec.json.encode(document))
        return
    facts = target.facts
    ports = ", ".join(map(str, facts.ports))
    tier = f"tier {counts.tier}" if counts.tier else "not under Fastsocket"
    click.echo(f"{facts.program} (pid {facts.pid}) on port {ports}: {tier}")
    rows = (
        ("connections/s", counts.connections / counts.seconds),
        ("local %", counts.local_percent),
        ("lock contentions/1k, all the host's", counts.lock_contentions_per_1k),
        ("resched IPIs/1k, all the host's", counts.resched_ipis_per_1k),
        ("worker spread (CV)", counts.worker_cv),
    )
    for name, value in rows:
        click.echo(f"  {name:36}" + ("–" if value is None else f"{value:,.2f}"))
    for core in counts.cores:
        share = 100 * core.local / core.accepted
        click.echo(f"  CPU {core.cpu:3}: {core.accepted:9,} accepted, {share:5.1f} % local")
    click.echo(f"Is it active, and does it help here? {judged.answer.capitalize()}.")
    for reason in judged.reasons:
        click.echo(f"  {reason}")
    click.echo(f"next: {judged.todo}")
