# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket export`: the figures of `top` for Prometheus, and a Grafana dashboard of them."""

import errno
import json

import click

from fastsocket.errors import ConflictError, MissingFeatureError, UsageError
from fastsocket.observe.applications import Applications
from fastsocket.observe.dashboard import dashboard
from fastsocket.observe.host import HostSource
from fastsocket.observe.record import Stop, stop_on_signals
from fastsocket.observe.steering import steering_counters

__all__ = ["address", "command"]


def address(text: str) -> tuple[str, int]:
    """Return host and port of "127.0.0.1:9464" or "[::1]:9464".

    Raises:
        UsageError: It is something else.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"'{text}' is no address", "", "write 127.0.0.1:9464 or [::1]:9464")
    return host, int(port)


@click.command()
@click.option("--listen", default="127.0.0.1:9464", show_default=True, help="Address to serve on.")
@click.option("--once", is_flag=True, help="Print the metrics once and end.")
@click.option("--json", "as_json", is_flag=True, help="Print the metrics once, as JSON, and end.")
@click.option(
    "--dashboard", "as_dashboard", is_flag=True, help="Print a Grafana dashboard and end."
)
def command(listen: str, *, once: bool, as_json: bool, as_dashboard: bool) -> None:
    """Serve the counters of CPUs, slots and rules to Prometheus until it is stopped.

    A sample is taken when it is scraped. The page is open to all that reach the address.
    """
    if as_dashboard:
        click.echo(json.dumps(dashboard(), indent=2))
        return
    host, port = address(listen)
    try:
        from prometheus_client import CollectorRegistry, generate_latest, start_http_server

        from fastsocket.observe.prometheus import SampleCollector
    except ImportError as error:
        raise MissingFeatureError(
            "nothing can be exported", str(error), "pip install 'fastsocket[export]'"
        ) from error
    registry = CollectorRegistry()
    source = HostSource(Applications(rescan=60).read, steering_counters)
    registry.register(SampleCollector(source))
    if as_json:
        metrics = [
            {"name": sample.name, "labels": sample.labels, "value": sample.value}
            for family in registry.collect()
            for sample in family.samples
        ]
        click.echo(json.dumps(metrics))
        return
    if once:
        click.echo(generate_latest(registry).decode(), nl=False)
        return
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        kind = ConflictError if taken else UsageError
        raise kind(
            f"cannot serve on {listen}",
            error.strerror or str(error),
            "choose another with --listen",
        ) from error
    click.echo(f"http://{listen}/metrics; next: add this target to prometheus.yml", err=True)
    stop = Stop()
    with stop_on_signals(stop):
        stop.wait()
    server.shutdown()
    server.server_close()
    thread.join()
