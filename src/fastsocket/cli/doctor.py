# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket doctor`: would it help here, and does it? A verdict with its reasons."""

from pathlib import Path

import click
import msgspec

from fastsocket.cli.fold import fold
from fastsocket.errors import ConflictError, UsageError
from fastsocket.host.doctor import Check, Diagnosis, Grade, diagnose
from fastsocket.host.load import Load, take_load
from fastsocket.host.sample import HostFacts, ServerFacts, host_facts, server_facts
from fastsocket.nic.facts import load_facts

__all__ = ["command", "diagnosis_text"]

WATCH_SECONDS = 2.0
MEASURE_SECONDS = 5.0


@click.command()
@click.argument("pid", type=click.IntRange(min=1), required=False)
@click.option(
    "-i", "--interface", metavar="IF", help="The card to look at [default: the default route's]."
)
@click.option(
    "--facts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Judge the host whose facts 'fastsocket nic show --save' wrote.",
)
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
def command(
    *,
    pid: int | None,
    interface: str | None,
    facts: Path | None,
    measure: str | None,
    seconds: float | None,
    as_json: bool,
) -> None:
    """Say whether Fastsocket would help this host, or the server with this PID, and why.

    Run it while the host serves its usual load; it only reads. With --measure it counts what a
    running server really does, which needs root; to a URL it makes short connections itself.
    """
    if measure is not None:
        if pid is not None or facts is not None or interface is not None:
            raise UsageError("one server at a time", todo="leave out --measure, or all the others")
        _measure(measure, seconds or MEASURE_SECONDS, as_json)
        return
    if facts is not None:
        if pid is not None or interface is not None or seconds is not None:
            raise UsageError("a recorded host cannot be watched", todo="leave out --facts")
        _recorded(facts, as_json)
        return
    server = None if pid is None else server_facts(pid)
    host = host_facts(pid=pid)
    card, tables = _look_at_card(interface, pid)
    if tables is not None:
        host = msgspec.structs.replace(host, tables=tables)
    load = take_load(seconds or WATCH_SECONDS, pid)
    next_step = "'fastsocket bench short' measures it on this host"
    subject = "this server" if server else "this host"
    _print(diagnose(host, load, server, (card,)), host, load, server, as_json, subject, next_step)


def _look_at_card(interface: str | None, pid: int | None) -> tuple[Check, tuple[str, ...] | None]:
    """Judge the card, and return with it the tables of netfilter, where they can be seen."""
    # Not at the top: it takes longer to import than all the rest.
    from fastsocket.nic.collect import collect
    from fastsocket.nic.verdict import card_check, default_interface

    def unknown(found: str, why: str, todo: str) -> tuple[Check, None]:
        return Check("card", Grade.UNKNOWN, found, why, todo), None

    spaces = {Path(f"/proc/{one}/ns/net").stat().st_ino for one in ("self", pid or "self")}
    if len(spaces) > 1:
        why = "the process is in another network namespace"
        return unknown("not looked at", why, f"run doctor there: nsenter -t {pid} -n -m")
    if not (name := interface or default_interface()):
        return unknown("not looked at", "there is no default route", "name the card with -i")
    try:
        facts = collect(name)
    except ConflictError as error:
        if interface is not None:
            raise
        return unknown(error.what, error.why, error.todo)
    seen = facts.netfilter
    return card_check(facts), seen.tables if seen.visible else None


def _recorded(path: Path, as_json: bool) -> None:
    from fastsocket.nic.verdict import card_check, recorded_settings

    facts = load_facts(path)
    host = recorded_settings(facts)
    diagnosis = diagnose(host, facts.load, None, (card_check(facts),))
    next_step = f"'fastsocket nic plan --facts {path}' shows what its card lacks"
    _print(diagnosis, host, facts.load, None, as_json, "the recorded host", next_step)


def _print(
    diagnosis: Diagnosis,
    host: HostFacts,
    load: Load,
    server: ServerFacts | None,
    as_json: bool,
    subject: str,
    next_step: str,
) -> None:
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
    else:
        click.echo(fold(f"{diagnosis_text(diagnosis, subject)}\nnext: {next_step}"))


def diagnosis_text(diagnosis: Diagnosis, subject: str) -> str:
    """Return the checks, then the verdict with its reasons."""
    width = max(len(check.name) for check in diagnosis.checks)
    lines = []
    for check in diagnosis.checks:
        lines.append(f"{check.grade:8}{check.name:{width}}  {check.found}: {check.why}")
        if check.todo:
            lines.append(f"{'':{8 + width}}  -> {check.todo}")
    lines.append(f"Would Fastsocket help {subject}? {diagnosis.verdict.capitalize()}.")
    lines.extend(f"  {reason}" for reason in diagnosis.reasons)
    return "\n".join(lines)


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
