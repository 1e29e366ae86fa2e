# SPDX-License-Identifier: GPL-2.0-or-later
"""Load generators: how each is called, and what it says."""

import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fastsocket.errors import FastsocketError, UsageError
from fastsocket.native import NATIVE_DIR, native_file

__all__ = ["CLIENTS", "SOURCES", "Client", "Load", "Outcome", "client"]

# Sources enough that no port is needed twice while its TIME_WAIT lasts (60 s).
SOURCES = "127.0.0.2-127.0.0.33"

# ab allocates 32 bytes for each request that it is allowed; -t ends it long before this many.
AB_PER_SECOND = 200_000


@dataclass(frozen=True)
class Load:
    """What is asked of a client: `warmup` seconds that do not count, then `seconds` that do.

    With a `rate`, connections start at fixed times, whatever the server does, and latency counts
    from there (no coordinated omission); without, `connections` are kept going. With `hold`, that
    many connections are opened, make one request each and stay open for `seconds`. `sources` is a
    range of addresses to come from, where the client can choose; `requests` are made on each
    connection, and with `lean` the first takes the last ACK of the handshake along.
    """

    url_host: str
    port: int
    connections: int
    seconds: float
    warmup: float
    processes: int
    directory: Path
    rate: float | None = None
    hold: int | None = None
    sources: str = SOURCES
    requests: int = 1
    lean: bool = False


@dataclass(frozen=True)
class Outcome:
    """What the client saw: connections completed, errors, latencies in microseconds by name.

    `cut_short` of the errors are connections that ended within an answer; `kinds` names them all,
    where the client does. `requests` are those answered on them, where the client counts those.
    """

    seconds: float
    completed: int
    errors: int
    latency_us: Mapping[str, float] = field(default_factory=dict)
    cut_short: int = 0
    kinds: Mapping[str, int] = field(default_factory=dict)
    requests: int = 0

    @property
    def per_second(self) -> float | None:
        """Completed connections per second."""
        return self.completed / self.seconds if self.seconds > 0 else None


class Client(Protocol):
    """One load generator."""

    @property
    def name(self) -> str:
        """The name on the command line."""

    @property
    def warms_up(self) -> bool:
        """Whether it leaves its own warm-up out; otherwise a load of its own comes before."""

    @property
    def versatile(self) -> bool:
        """Whether it can keep a rate, hold connections, be lean and name the kinds of errors."""

    def command(self, load: Load) -> list[str]:
        """Return the command; it ends by itself.

        Raises:
            FastsocketError: Not installed or not built.
        """

    def parse(self, output: str) -> Outcome:
        """Read what it printed.

        Raises:
            FastsocketError: Not what it should print.
        """


class FastsocketLoad:
    """The generator of this project: a pinned process and fd table per CPU, many sources."""

    name = "fastsocket-load"
    warms_up = True
    versatile = True

    def command(self, load: Load) -> list[str]:
        """See :class:`Client`."""
        pace = ["-c", str(load.connections)]
        if load.rate is not None:
            pace = ["-r", f"{load.rate:g}"]
        if load.hold is not None:
            pace = ["--hold", str(load.hold)]
        pace += ["-k", str(load.requests), *(["--lean"] if load.lean else [])]
        return [
            str(native_file("fastsocket-load")),
            *(*pace, "-p", str(load.processes), "-s", load.sources, "-j"),
            *("-t", f"{load.seconds:g}", "-W", f"{load.warmup:g}"),
            f"{load.url_host}:{load.port}",
        ]

    def parse(self, output: str) -> Outcome:
        """See :class:`Client`."""
        try:
            said = json.loads(output)
            return Outcome(
                seconds=float(said["seconds"]),
                completed=int(said["completed"]),
                errors=sum(int(count) for count in said["errors"].values()),
                latency_us={
                    name: float(value)
                    for name, value in said["latency_us"].items()
                    if value is not None
                },
                cut_short=said["errors"]["reset"]
                + sum(said["other_causes"][cause] for cause in ("closed", "truncated"))
                - sum(said["accepted_lost"].values()),
                kinds={kind: count for kind, count in said["errors"].items() if count},
                requests=int(said["requests"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _unreadable(self.name, output) from error


# wrk calls this at the end; latencies are in microseconds, the duration too.
_WRK_SCRIPT = """\
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('{"seconds":%.6f,"completed":%d,"errors":%d,"latency_us":' ..
    '{"mean":%.1f,"p50":%.1f,"p90":%.1f,"p99":%.1f,"p999":%.1f,"max":%.1f}}\\n',
    summary.duration / 1e6, summary.requests, e.connect + e.read + e.write + e.status + e.timeout,
    latency.mean, latency:percentile(50), latency:percentile(90), latency:percentile(99),
    latency:percentile(99.9), latency.max))
end
"""


class Wrk:
    """wrk: threads with one fd table, whole seconds, one source address."""

    name = "wrk"
    warms_up = False
    versatile = False

    def command(self, load: Load) -> list[str]:
        """See :class:`Client`."""
        script = load.directory / "wrk.lua"
        script.write_text(_WRK_SCRIPT, encoding="ascii")
        threads = min(load.processes, load.connections)
        return [
            _installed("wrk", "wrk"),
            *("-t", str(threads), "-c", str(load.connections), "-d", f"{math.ceil(load.seconds)}s"),
            *("-H", "Connection: close", "-s", str(script)),
            f"http://{load.url_host}:{load.port}/",
        ]

    def parse(self, output: str) -> Outcome:
        """See :class:`Client`."""
        lines = [line for line in output.splitlines() if line.startswith("{")]
        try:
            said = json.loads(lines[-1])
            return Outcome(said["seconds"], said["completed"], said["errors"], said["latency_us"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise _unreadable(self.name, output) from error


class Ab:
    """ApacheBench: one thread, whole seconds, percentiles in whole milliseconds."""

    name = "ab"
    warms_up = False
    versatile = False

    def command(self, load: Load) -> list[str]:
        """See :class:`Client`."""
        return [
            _installed("ab", "apache2-utils"),
            *("-q", "-r", "-c", str(load.connections), "-t", str(math.ceil(load.seconds))),
            *("-n", str(AB_PER_SECOND * math.ceil(load.seconds))),
            f"http://{load.url_host}:{load.port}/",
        ]

    def parse(self, output: str) -> Outcome:
        """See :class:`Client`."""

        def number(pattern: str) -> float:
            match = re.search(pattern, output, re.MULTILINE)
            if match is None:
                raise _unreadable(self.name, output)
            return float(match[1])

        percentiles = {
            f"p{share}": 1000 * number(rf"^\s*{share}%\s+(\d+)") for share in (50, 90, 99)
        }
        return Outcome(
            seconds=number(r"^Time taken for tests:\s+([\d.]+)"),
            completed=int(number(r"^Complete requests:\s+(\d+)")),
            errors=int(number(r"^Failed requests:\s+(\d+)")),
            latency_us=percentiles,
        )


CLIENTS: Mapping[str, Client] = {known.name: known for known in (FastsocketLoad(), Wrk(), Ab())}


def client(name: str) -> Client:
    """Return the client `name`; "auto" is the project's own where it is built, else wrk.

    Raises:
        UsageError: There is none.
    """
    if name == "auto":
        built = (NATIVE_DIR / FastsocketLoad.name).exists()
        return CLIENTS[FastsocketLoad.name if built else Wrk.name]
    if name not in CLIENTS:
        raise UsageError(f"no client {name!r}", todo=f"choose one of auto, {', '.join(CLIENTS)}")
    return CLIENTS[name]


def _installed(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise FastsocketError(f"{name} is not installed", todo=f"apt-get install {package}")
    return path


def _unreadable(name: str, output: str) -> FastsocketError:
    last = output.strip().splitlines()[-1:] or ["nothing"]
    return FastsocketError(f"the output of {name} cannot be read", f"it ends with: {last[0]}")
