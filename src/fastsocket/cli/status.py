# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket status`: what is active, what is missing and why."""

import json
from collections import Counter
from textwrap import shorten
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastsocket.app.client import applications, owner_of
from fastsocket.errors import ConflictError
from fastsocket.host.feature import Feature
from fastsocket.host.kernel import verify

__all__ = ["command"]

MEANS = {
    "defer": "wake-up only when the request is there",
    "hold": "answer and FIN in one segment",
    "ack": "no lone ACK of a request",
}
NO_FAST_EPOLL = {
    "threads": "their process has several threads",
    "shared": "their process forked or started a program when it had its epoll instance",
}
TIERS = {
    "migrate": "chosen by CPU and load; a closed slot's connections move on",
    "select": "chosen by CPU and load",
    "classic": "chosen by CPU, without privileges",
    "none": "the application's own socket, as without Fastsocket",
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.argument("pid", type=int, required=False)
def command(as_json: bool, pid: int | None) -> None:
    """Show the accelerated applications and the kernel's features, or the one of PID."""
    found = applications()
    features: list[Feature] = []
    if pid is not None:
        owner = owner_of(pid, found)
        if owner is None:
            raise ConflictError(
                f"process {pid} does not run under Fastsocket",
                todo="start it with 'fastsocket run -- CMD'",
            )
        found = [owner]
    else:
        features = verify()
    if as_json:
        document = {"applications": found, "features": msgspec.to_builtins(features)}
        click.echo(json.dumps(document))
        return
    console = Console(highlight=False)
    if not found:
        console.print("No application runs accelerated. Start one: fastsocket run -- nginx")
    for status in found:
        _show(console, status)
    if features:
        _show_features(console, features)


def _show(console: Console, status: dict[str, Any]) -> None:
    words = " ".join(" ".join(status["command"]).split())  # one line, whatever the arguments
    console.print(Text(shorten(words, 60, placeholder=" …"), "bold"), f"(pid {status['pid']})")
    console.print(f"  tier {status['tier']}: {TIERS[status['tier']]}")
    for feature, reason in status["reasons"].items():
        console.print(f"  {feature} is missing: {reason}")
    if status["listen_overflows"]:
        console.print(
            f"  full accept queues in this network namespace: {status['listen_overflows']}"
        )
    if status.get("refused"):
        console.print(f"  requests of strangers that its keeper refused: {status['refused']}")
    if status["local"]:
        _show_local(console, status["local"])
    if status.get("deliver"):  # a keeper from before an upgrade does not tell
        _show_deliver(console, status)
    _show_batch(console, status)
    _show_busy_poll(console, status)
    _show_fast_epoll(console, status)
    _show_roaming(console, status)
    for listener in status["listeners"]:
        _show_listener(console, listener)


def _show_batch(console: Console, status: dict[str, Any]) -> None:
    if batch := status.get("batch"):  # a keeper from before an upgrade does not tell
        slice_ms = status.get("batch_slice_ms")  # 0 where the kernel has one for all
        words = f"{batch} of {len(status['processes'])} processes"
        means = f"SCHED_BATCH, slices of {slice_ms:g} ms" if slice_ms else "SCHED_BATCH"
        words += f" do not interrupt what runs on their CPU ({means})"
        console.print(f"  {words}")


def _show_busy_poll(console: Console, status: dict[str, Any]) -> None:
    if limit := status.get("busy_poll_us"):
        words = f"{status['polled']} waits found events and did not sleep"
        console.print(f"  busy polling for {limit} us: {words}")


def _show_fast_epoll(console: Console, status: dict[str, Any]) -> None:
    workers = [slot for slot in _slots(status) if slot.get("fast_epoll", "off") != "off"]
    if not workers:
        return
    merged = sum(slot["merged"] for slot in workers)
    states = Counter(slot["fast_epoll"] for slot in workers)
    console.print(f"  fast epoll: {merged} epoll_ctl calls were not needed")
    for state, why in NO_FAST_EPOLL.items():
        if states[state]:
            console.print(f"    off in {states[state]} of {len(workers)} workers: {why}")


def _show_roaming(console: Console, status: dict[str, Any]) -> None:
    workers = _slots(status)
    if roaming := sum(slot.get("roams", False) for slot in workers):
        words = f"{roaming} of {len(workers)} workers have no CPU of their own"
        console.print(f"  {words}: other threads of theirs do much of the work")


def _show_deliver(console: Console, status: dict[str, Any]) -> None:
    deliver = status["deliver"]
    counts = [deliver] if "opened" in deliver else _slots(status)
    opened, borrowed = (sum(each[name] for each in counts) for name in ("opened", "borrowed"))
    console.print(
        f"  receive flow deliver by {deliver['by']}: {opened} connections from ports of their CPU,"
        f" {borrowed} from others"
    )


def _slots(status: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one slot of each worker."""
    slots = [slot for listener in status["listeners"] for slot in listener["slots"]]
    return list({(slot["pid"], slot["tid"]): slot for slot in slots}.values())


def _show_local(console: Console, local: dict[str, Any]) -> None:
    state = f"off: {local['off']}" if local["off"] else "active"
    console.print(
        f"  local fast path of port {local['port']} is {state}; {local['connections']} connections,"
        f" {local['redirected']} messages past TCP, {local['passed']} over TCP"
    )
    for limit in local["limits"]:
        console.print(f"    not as over TCP on this kernel: {limit}")


def _show_features(console: Console, features: list[Feature]) -> None:
    console.print("Kernel features, each verified by doing:")
    table = Table(box=None, padding=(0, 1), show_header=False)
    for feature in features:
        colour = {"active": "green", "missing": "yellow"}.get(feature.state, "dim")
        why = f"{feature.why}; {feature.todo}" if feature.todo else feature.why
        table.add_row(f"  {feature.name}", Text(feature.state, colour), Text(why))
    console.print(table)


def _show_lean(console: Console, lean: dict[str, Any]) -> None:
    """Print what was learned of the listener's connections, a line for each means."""
    if all(means["state"] == "off" for means in lean.values()):
        return
    console.print("    lean connections:")
    for name, means in lean.items():
        line = f"      {MEANS[name]}: {means['state']}"
        if means["state"] in ("learning", "dropped"):
            need = means["need"]
            line += f", {means['proof']} of {need} connections" if need else " for good"
            line += f"; {means['why']}" if means["why"] else ""
        elif means["state"] == "own":
            line += ", as the application set it"
        console.print(line, markup=False)


def _show_listener(console: Console, listener: dict[str, Any]) -> None:
    address = listener["address"]
    where = f"[{address}]" if ":" in address else address
    console.print(f"  listens on {where}:{listener['port']}", markup=False)
    if len(listener["slots"]) < 2:
        console.print("    one worker polls it: nothing to spread")
    elif listener["tier"] in ("select", "migrate"):
        _show_decisions(console, listener["decisions"])
    _show_lean(console, listener["lean"])
    if listener["unslotted"]:
        reason = f"{listener['unslotted']} workers share a socket: {listener['reason']}"
        console.print(f"    {reason}", markup=False)
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for name in ("slot", "pid", "cpu", "state", "accepted", "from other CPUs", "live"):
        table.add_column(name, justify="right")
    table.add_column("waiting", justify="right")
    table.add_column("dropped", justify="right")
    for slot in listener["slots"]:
        cells = [slot[key] for key in ("slot", "pid", "cpu", "state", "accepted", "spilled")]
        table.add_row(
            *("-" if cell is None else str(cell) for cell in cells),
            str(slot["live"]),
            _waiting(slot),
            "-" if slot["dropped"] is None else str(slot["dropped"]),
        )
    console.print(table)


def _show_decisions(console: Console, decisions: dict[str, int]) -> None:
    words = {
        "local": "to their own CPU's worker",
        "spilled": "to another CPU's",
        "stolen": "taken over from a worker that was late or gone",
        "passed": "left to the kernel",
    }
    parts = (f"{decisions[name]} {name} ({text})" for name, text in words.items())
    console.print(f"    connections: {', '.join(parts)}", soft_wrap=True)


def _waiting(slot: dict[str, Any]) -> str:
    """Return the accept queue: how many of how many, and for how long nobody came for them."""
    text = str(slot["waiting"])
    if slot["backlog"] is not None:
        text += f" of {slot['backlog']}"
    return f"{text}, {slot['unserved_ms']} ms" if slot["unserved_ms"] else text
