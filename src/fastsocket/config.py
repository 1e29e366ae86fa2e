# SPDX-License-Identifier: GPL-2.0-or-later
"""Parameters: the names and meanings of the 2014 module, `fastsocket.toml`, and profiles.

Where a value comes from, the later one wins:

1. the default in `Parameters`;
2. the host: what `fastsocket load` made the host's, else the configuration file;
3. the application's profile;
4. the flags of the command line.

The configuration file is the one given with ``--config``, else ``/etc/fastsocket.toml``. A file in
the current folder is not read: where a shell happens to stand must not change how servers run.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec

from fastsocket.errors import UsageError

__all__ = [
    "ALLOWED",
    "SYSTEM_CONFIG",
    "Advice",
    "Parameters",
    "Profile",
    "checked",
    "load_config",
    "load_profile",
    "profile_for",
    "profile_names",
]

SYSTEM_CONFIG = Path("/etc/fastsocket.toml")

_PROFILES = Path(__file__).parent / "profiles"

# What a person may write for each parameter; the test compares it with the types below.
ALLOWED = {
    "enable_listen_spawn": "0 (off), 1 (on, the application pins its workers) or 2 (on, pinned)",
    "enable_receive_flow_deliver": "0 (off) or 1 (on)",
    "enable_fast_epoll": "0 (off) or 1 (on)",
    "policy": '"local", "spread" or "hash"',
    "stall_us": "microseconds, 100 to 10000000",
    "slack": "percent, 0 to 1000",
    "lean": '"auto" or "off"',
    "slots": "0 (two for each CPU that the application may use) to 256",
}


class Parameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an application is accelerated.

    Attributes:
        enable_listen_spawn: 0 off; 1 each worker gets its own listening socket and the application
            pins its workers; 2 Fastsocket pins them too.
        enable_receive_flow_deliver: 1 takes the local port of an outgoing connection from the
            range of its CPU, so that replies come back there.
        enable_fast_epoll: 1 defers and merges epoll_ctl calls until the next wait.
        policy: How a new connection chooses its slot: `local` the CPU that received it, with
            spill; `spread` the least loaded; `hash` as the kernel does.
        stall_us: A worker busy for longer counts as stalled, in microseconds.
        slack: By how many percent a slot may exceed the mean of its listener, in new connections
            within 67 ms, before connections go elsewhere.
        lean: `auto` learns per listener which segments a connection can do without; `off`.
        slots: Listening sockets that are bound ahead, before a fork or a change of user; 0 is
            two for each CPU that may be used, for a reload doubles the workers, and 16 at least.
    """

    enable_listen_spawn: Literal[0, 1, 2] = 2
    enable_receive_flow_deliver: Literal[0, 1] = 0
    enable_fast_epoll: Literal[0, 1] = 0
    policy: Literal["local", "spread", "hash"] = "local"
    stall_us: Annotated[int, msgspec.Meta(ge=100, le=10_000_000)] = 5000
    slack: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 25
    lean: Literal["auto", "off"] = "off"
    slots: Annotated[int, msgspec.Meta(ge=0, le=256)] = 0


class Advice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A setting of the application itself that a profile recommends, and its reason."""

    setting: str
    why: str


class _Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One parameter of a profile: its value, of any type until it is checked, and its reason."""

    value: Any
    why: str


class _ProfileFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The form of profiles/NAME.toml."""

    summary: str
    programs: list[str]
    parameters: dict[str, _Choice] = {}
    advice: list[Advice] = []


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """What is known to suit one application.

    Attributes:
        name: As given to ``run --profile``.
        summary: How the application takes its connections, in one line.
        programs: Names of the commands that it is for.
        parameters: Parameter -> value, only those that the profile decides.
        reasons: Parameter -> why.
        advice: Settings for the application's own configuration.
    """

    name: str
    summary: str
    programs: tuple[str, ...]
    parameters: dict[str, Any]
    reasons: dict[str, str]
    advice: tuple[Advice, ...]


_TYPES = get_type_hints(Parameters, include_extras=True)


def checked(values: Mapping[str, Any], source: str, base: Parameters | None = None) -> Parameters:
    """Return `base` with some parameters replaced, each checked by itself.

    Args:
        values: Parameter -> value, as read from `source`.
        source: Where the values come from, for the error: a file, or "the command line".
        base: What the others keep, by default the defaults.

    Raises:
        UsageError: An unknown parameter or a value that is not allowed, with what is.
    """
    good = {}
    for key, value in values.items():
        if key not in _TYPES:
            raise UsageError(
                f"{source}: unknown parameter {key!r}", "", f"known are {', '.join(_TYPES)}"
            )
        try:
            # `true` is no 1: TOML has both, and the 2014 parameters are numbers.
            good[key] = msgspec.convert(value, _TYPES[key], strict=True)
        except msgspec.ValidationError:
            raise UsageError(
                f"{source}: {key} = {_as_toml(value)} is not allowed",
                "",
                f"allowed: {ALLOWED[key]}",
            ) from None
    return msgspec.structs.replace(base or Parameters(), **good)


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
    return checked(_read_toml(file), str(file))


def profile_names() -> tuple[str, ...]:
    """Return the names of the profiles in the package, sorted."""
    return tuple(sorted(file.stem for file in _PROFILES.glob("*.toml")))


def load_profile(name: str) -> Profile:
    """Return a profile of the package.

    Raises:
        UsageError: There is no such profile; the message lists those that there are.
    """
    if name not in profile_names():  # also keeps a name from leading out of the folder
        raise UsageError(f"unknown profile {name!r}", "", f"known are {', '.join(profile_names())}")
    file = _PROFILES / f"{name}.toml"
    form = msgspec.convert(_read_toml(file), _ProfileFile)
    values = {key: choice.value for key, choice in form.parameters.items()}
    checked(values, str(file))
    return Profile(
        name=name,
        summary=form.summary,
        programs=tuple(form.programs),
        parameters=values,
        reasons={key: choice.why for key, choice in form.parameters.items()},
        advice=tuple(form.advice),
    )


def profile_for(program: str) -> Profile | None:
    """Return the profile whose programs include a command's file name, if there is one."""
    profiles = (load_profile(name) for name in profile_names())
    return next((profile for profile in profiles if program in profile.programs), None)


def _read_toml(file: Path) -> dict[str, Any]:
    """Return a TOML file's content, or say what is wrong with it."""
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
