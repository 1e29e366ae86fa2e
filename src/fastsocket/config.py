# SPDX-License-Identifier: GPL-2.0-or-later
"""Parameters: the names and meanings of the 2014 module, and `fastsocket.toml`.

Where a value comes from, the later one wins:

1. the default in `Parameters`;
2. the host: what `fastsocket load` made the host's, else the configuration file;
3. the application's profile;
4. the flags of the command line.

The configuration file is the one given with ``--config``, else ``/etc/fastsocket.toml``. A file in
the current folder is not read: where a shell happens to stand must not change how servers run.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastsocket.errors import UsageError

__all__ = ["ALLOWED", "SYSTEM_CONFIG", "Parameters", "checked", "load_config", "read_toml"]

SYSTEM_CONFIG = Path("/etc/fastsocket.toml")

# What a person may write for each parameter; the test compares it with the types below.
ALLOWED = {
    "enable_listen_spawn": "0 (off), 1 (on, the application pins its workers) or 2 (on, pinned)",
    "enable_receive_flow_deliver": "0 (off) or 1 (on)",
    "enable_fast_epoll": "0 (off) or 1 (on)",
    "policy": '"local", "spread" or "hash"',
    "stall_us": "microseconds, 100 to 10000000",
    "slack": "percent, 0 to 1000",
    "lean": '"auto" or "off"',
    "defer_accept": "0 (off) or 1 (on)",
    "fast_open": "0 (off) or 1 (on)",
    "batch": "0 (off) or 1 (on)",
    "busy_poll_us": "microseconds, 0 (off) to 1000",
    "slots": "0 (two for each CPU that the application may use) to 256",
}


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """How an application is accelerated.

    Attributes:
        enable_listen_spawn: 0 off; 1 each worker gets its own listening socket and the application
            pins its workers; 2 Fastsocket pins them too.
        enable_receive_flow_deliver: 1 takes the local port of an outgoing connection from the
            range of its CPU, so that replies come back there.
        enable_fast_epoll: 1 defers and merges epoll_ctl calls until the next wait.
        policy: How a new connection chooses its slot: `local` the CPU that received it, with
            spill; `spread` the least loaded; `hash` as the kernel does.
        stall_us: A worker busy for longer counts as stalled, in microseconds; up to 100,000 also
            one busy for less, if it usually is back much sooner.
        slack: By how many percent a slot may exceed the mean of its listener, in new connections
            within 67 ms, before connections go elsewhere.
        lean: `auto` learns per listener which segments a connection can do without; `off`.
        defer_accept: 1 lets `lean` hide connections that have no request yet, for a second at most.
        fast_open: 1 lets `lean` use TCP Fast Open, which may hand a request over twice.
        batch: 1 starts the application with the scheduling policy SCHED_BATCH: what wakes up does
            not interrupt what runs on its CPU, and serves more at once.
        busy_poll_us: How long epoll_wait looks for events before it sleeps, in microseconds, as
            long as that often finds some.
        slots: Listening sockets that are bound ahead, before a fork or a change of user; 0 is
            two for each CPU that may be used, for a reload doubles the workers, and 16 at least.
    """

    enable_listen_spawn: int = 2
    enable_receive_flow_deliver: int = 0
    enable_fast_epoll: int = 0
    policy: str = "local"
    stall_us: int = 5000
    slack: int = 25
    lean: str = "auto"
    defer_accept: int = 0
    fast_open: int = 0
    batch: int = 0
    busy_poll_us: int = 0
    slots: int = 0


# A plain table: this module is imported by every launch, and a schema library takes longer to
# import than all the rest.
_VALUES: Mapping[str, Container[Any]] = {
    "enable_listen_spawn": (0, 1, 2),
    "enable_receive_flow_deliver": (0, 1),
    "enable_fast_epoll": (0, 1),
    "policy": ("local", "spread", "hash"),
    "stall_us": range(100, 10_000_001),
    "slack": range(1001),
    "lean": ("auto", "off"),
    "defer_accept": (0, 1),
    "fast_open": (0, 1),
    "batch": (0, 1),
    "busy_poll_us": range(1001),
    "slots": range(257),
}


def checked(values: Mapping[str, Any], source: str, base: Parameters | None = None) -> Parameters:
    """Return `base` with some parameters replaced, each checked by itself.

    Args:
        values: Parameter -> value, as read from `source`.
        source: Where the values come from, for the error: a file, or "the command line".
        base: What the others keep, by default the defaults.

    Raises:
        UsageError: An unknown parameter or a value that is not allowed, with what is.
    """
    for key, value in values.items():
        if key not in _VALUES:
            raise UsageError(
                f"{source}: unknown parameter {key!r}", "", f"known are {', '.join(_VALUES)}"
            )
        # `true` is no 1: TOML has both, and the 2014 parameters are numbers.
        if type(value) is not type(getattr(Parameters, key)) or value not in _VALUES[key]:
            raise UsageError(
                f"{source}: {key} = {_as_toml(value)} is not allowed",
                "",
                f"allowed: {ALLOWED[key]}",
            )
    return replace(base or Parameters(), **values)


def load_config(path: Path | None = None) -> Parameters:
    """Return the parameters of the configuration file.

    Args:
        path: The file of ``--config``; it must exist. By default SYSTEM_CONFIG, where there is one.

    Raises:
        UsageError: The file is missing, is not TOML, or has an unknown key or a wrong value.
    """
    file = path or SYSTEM_CONFIG
    if path is None and not file.exists():
        return Parameters()
    return checked(read_toml(file), str(file))


def read_toml(file: Path) -> dict[str, Any]:
    """Return a TOML file's content, or say what is wrong with it."""
    import tomllib  # few hosts have a file, and every launch comes by here

    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise UsageError(
            f"{file}: cannot be read", error.strerror or "", "check --config"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: is not TOML", str(error), "correct that line") from None


def _as_toml(value: object) -> str:
    """Show a value as its file would have it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
