# SPDX-License-Identifier: GPL-2.0-or-later
"""Profiles: what is known to suit an application, each line with its reason."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from fastsocket.config import checked, read_toml
from fastsocket.errors import UsageError

__all__ = ["Advice", "Profile", "Settings", "load_profile", "profile_names"]

_PROFILES = Path(__file__).parent / "profiles"


class Advice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A setting of the application itself that a profile recommends, and its reason."""

    setting: str
    why: str


class _Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One parameter of a profile: its value, of any type until it is checked, and its reason."""

    value: Any
    why: str


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A configuration file beside the profile, for a program that reads several.

    It is read before the application's own, which so overrules it.
    """

    program: str
    option: str
    file: str
    why: str


class _ProfileFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The form of profiles/NAME.toml."""

    summary: str
    parameters: dict[str, _Choice] = {}
    advice: list[Advice] = []
    settings: Settings | None = None


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """What is known to suit one application.

    Attributes:
        name: As given to ``run --profile``.
        summary: How the application takes its connections, in one line.
        parameters: Parameter -> value, only those that the profile decides.
        reasons: Parameter -> why.
        advice: Settings for the application's own configuration.
        settings: What the profile sets in the application's own terms, None if nothing.
    """

    name: str
    summary: str
    parameters: dict[str, Any]
    reasons: dict[str, str]
    advice: tuple[Advice, ...]
    settings: Settings | None

    def command(self, command: Sequence[str]) -> list[str]:
        """Return `command` with the profile's settings, if it starts the program they are for."""
        own = self.settings
        if own is None or Path(command[0]).name != own.program:
            return list(command)
        return [command[0], own.option, str(_PROFILES / own.file), *command[1:]]


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
    form = msgspec.convert(read_toml(file), _ProfileFile)
    values = {key: choice.value for key, choice in form.parameters.items()}
    checked(values, str(file))
    return Profile(
        name=name,
        summary=form.summary,
        parameters=values,
        reasons={key: choice.why for key, choice in form.parameters.items()},
        advice=tuple(form.advice),
        settings=form.settings,
    )
