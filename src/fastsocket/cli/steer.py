# SPDX-License-Identifier: GPL-2.0-or-later
"""fastsocket steer: packet steering by rules written in Python."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fastsocket.errors import UsageError
from fastsocket.host.cpulist import format_list
from fastsocket.host.slices import local_slices
from fastsocket.steer import device
from fastsocket.steer.compile import compile_rule
from fastsocket.steer.cpus import cpu_set
from fastsocket.steer.frames import generated_flows, read_pcap
from fastsocket.steer.library import built_in_rules, find_rule, is_built_in
from fastsocket.steer.lower import lower
from fastsocket.steer.program import SteerProgram, read_table, write_table
from fastsocket.steer.trial import run_trial

__all__ = ["command"]

_cpus = click.option("--cpus", metavar="LIST", help="CPUs to choose from (default: all online).")
_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
_dry = click.option("--dry-run", is_flag=True, help="Check everything, change nothing.")
_device = click.option("-i", "--interface", required=True, metavar="IF", help="Network device.")


@click.group()
def command() -> None:
    """Send packets to CPUs by rules: five lines of Python each."""


def _print(as_json: bool, document: dict[str, Any], *lines: str) -> None:
    """Print the document, or the lines for people."""
    click.echo(json.dumps(document) if as_json else "\n".join(lines))


@command.command("list")
@_json
def list_rules(as_json: bool) -> None:
    """List the built-in rules."""
    rules = built_in_rules()
    width = max(len(rule.name) for rule in rules)
    document = {"rules": [{"name": rule.name, "text": rule.text} for rule in rules]}
    _print(as_json, document, *(f"{rule.name:{width}}  {rule.text}" for rule in rules))


@command.command()
@click.argument("rule")
@_cpus
@_json
def check(rule: str, cpus: str | None, as_json: bool) -> None:
    """Check a rule without compiling it; needs no privileges."""
    found = find_rule(rule)
    function = lower(found, len(cpu_set(cpus)))
    document = {
        "rule": found.name,
        "cpus": function.cpus,
        "returns": [function.returns.lo, function.returns.hi],
        "tables": {name: table.kind for name, table in found.tables.items()},
    }
    within = "" if function.returns.hi < function.cpus else "; higher numbers than cpus - 1 pass"
    _print(as_json, document, f"{found.name} is right for {function.cpus} CPUs{within}")


@command.command("compile")
@click.argument("rule")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File (default: RULE.bpf.o).")
@_cpus
@_dry
@_json
def compile_(
    rule: str, output: Path | None, cpus: str | None, dry_run: bool, as_json: bool
) -> None:
    """Compile a rule to a BPF object, to look at; attach does not need it."""
    found = find_rule(rule)
    begin = time.perf_counter()
    compiled = compile_rule(found, len(cpu_set(cpus)))
    seconds = time.perf_counter() - begin
    target = output or Path(f"{found.name}.bpf.o")
    if not dry_run:
        try:
            target.write_bytes(compiled.object)
        except OSError as error:
            raise UsageError(f"{target} cannot be written", error.strerror or "") from error
    document = {"rule": found.name, "file": str(target), "bytes": len(compiled.object),
                "seconds": round(seconds, 4), "written": not dry_run}  # fmt: skip
    verb = "would be written" if dry_run else "written"
    _print(as_json, document, f"{target} {verb}: {len(compiled.object)} bytes")


@command.command()
@click.argument("rule")
@click.option("--pcap", type=click.Path(path_type=Path), help="Use the packets of this capture.")
@click.option("--flows", type=click.IntRange(1, 10**7), default=10_000, show_default=True,
              help="Without --pcap: so many generated flows.")  # fmt: skip
@_cpus
@_json
def test(rule: str, pcap: Path | None, flows: int, cpus: str | None, as_json: bool) -> None:
    """Run a rule over packets in the kernel and show the spread; steers nothing."""
    found, chosen = find_rule(rule), cpu_set(cpus)
    frames = read_pcap(pcap) if pcap else generated_flows(flows)
    trial = run_trial(compile_rule(found, len(chosen)), chosen, frames)
    lines = [f"{found.name}: {trial.packets} packets, {trial.ns_per_packet} ns each"]
    for name, number in (*((f"CPU {cpu}", n) for cpu, n in trial.cpus.items()),
                         *trial.exits.items()):  # fmt: skip
        lines.append(f"  {name:14} {number:9}  {100 * number / trial.packets:5.1f} %")
    lines += [f"  counter {name}: {number}" for name, number in trial.counters.items()]
    _print(as_json, {"rule": found.name, **asdict(trial)}, *lines)


@command.command()
@click.argument("rule")
@_device
@_cpus
@click.option("--mode", type=click.Choice(["native", "generic"]),
              help="Where in the kernel (default: native, else generic).")  # fmt: skip
@_dry
@_json
def attach(
    rule: str, interface: str, cpus: str | None, mode: str | None, dry_run: bool, as_json: bool
) -> None:
    """Put a rule on a device; a rule that is there already is exchanged without a gap."""
    found, chosen = find_rule(rule), cpu_set(cpus)
    compiled = compile_rule(found, len(chosen))
    if dry_run:
        device.check_free(interface)
        with SteerProgram(compiled, chosen, tracing=True):
            pass
        document: dict[str, Any] = {"device": interface, "rule": found.name, "attached": False}
        _print(as_json, document, f"{found.name} would be attached to {interface}")
        return
    slices = local_slices() if is_built_in(found, "rfd") else None
    note = device.attach(compiled, interface, chosen, mode).note
    if slices:
        device.fill_slices(interface, slices.table(chosen))
    document = {"device": interface, "rule": note.rule, "mode": note.mode, "why": note.reasons,
                "cpus": note.cpus, "attached": True}  # fmt: skip
    because = f" ({note.reasons})" if note.reasons else ""
    _print(
        as_json,
        document,
        f"{note.rule} steers {interface} in {note.mode} mode{because}",
        f"see 'fastsocket steer status'; undo with 'fastsocket steer detach -i {interface}'",
    )


@command.command()
@_device
@_dry
@_json
def detach(interface: str, dry_run: bool, as_json: bool) -> None:
    """Remove the rule from a device."""
    if dry_run:
        names = [a.note.rule for a in device.status() if a.note.device == interface]
        name = names[0] if names else None
        text = (
            f"{name} would be detached from {interface}" if name else "there is nothing to detach"
        )
        _print(as_json, {"device": interface, "rule": name, "detached": False}, text)
        return
    note = device.detach(interface)
    document = {"device": interface, "rule": note.rule, "detached": True}
    _print(as_json, document, f"{note.rule} no longer steers {interface}")


@command.command()
@_json
def status(as_json: bool) -> None:
    """Show the rules on devices and what they did."""
    found = device.status()
    lines = [] if found else ["no device has a rule; see 'fastsocket steer attach --help'"]
    for attachment in found:
        note = attachment.note
        cpus = ",".join(map(str, note.cpus))
        lines.append(f"{note.device}: {note.rule}, {note.mode} mode, CPUs {cpus}")
        lines += [f"  {note.reasons}"] if note.reasons else []
        lines += [f"  {name:14} {n:12}" for name, n in attachment.exits.items() if n]
        lines += [f"  counter {name}: {n}" for name, n in attachment.counters.items()]
        if attachment.prompt:
            busy = format_list(attachment.prompt)
            lines += [f"  interrupts CPU {busy} for now: packets waited too long there"]
    document = {
        "devices": [
            {"device": a.note.device, "rule": a.note.rule, "mode": a.note.mode,
             "why": a.note.reasons, "cpus": a.note.cpus, "exits": a.exits, "prompt": a.prompt,
             "counters": a.counters, "tables": {t.name: t.kind for t in a.note.tables}}
            for a in found
        ]
    }  # fmt: skip
    _print(as_json, document, *lines)


@command.command()
@_device
@click.argument("name")
@click.argument("key")
@click.argument("value", type=int, required=False)
@click.option("--delete", is_flag=True, help="Remove the entry.")
@_dry
@_json
def table(
    interface: str, name: str, key: str, value: int | None, delete: bool, dry_run: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Read an entry of a table of the rule on a device; set it with VALUE, or delete it."""
    declared, kept = device.open_table(interface, name)
    try:
        if value is not None and not dry_run:
            write_table(declared, kept, key, value)
        elif delete and not dry_run:
            kept.delete(declared.key_bytes(key))
        now = read_table(declared, kept, key)
    finally:
        kept.close()
    document = {"device": interface, "table": name, "key": key, "value": now}
    _print(as_json, document, f"{name}[{key}]: {'no entry' if now is None else now}")
