# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's parameters: what `fastsocket load` activates and `fastsocket unload` takes back.

They lie in ``/run/fastsocket/params.json``, one JSON object whose keys are the fields of
`Parameters`, all of them. `fastsocket run` takes its defaults there, and so does libfsocket.so
where it is preloaded by hand. The file is only believed where nobody but root can write it.
"""

import contextlib
import json
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

from fastsocket.config import Parameters, checked, load_config
from fastsocket.errors import ConflictError, MissingFeatureError, UsageError
from fastsocket.host import journal
from fastsocket.host.runtime import HOST_DIR, private_dir, write_atomically

__all__ = ["Change", "host_parameters", "load", "loaded", "log_lines", "unload"]

_NAME = "params.json"


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that load or unload does to the host, and its reason in plain words."""

    action: str
    path: str
    why: str


def loaded(folder: Path = HOST_DIR) -> Parameters | None:
    """Return the host's parameters, or None where none are loaded.

    Raises:
        ConflictError: The file could have been written by somebody else than root.
        UsageError: The file has a key or a value that this version does not know.
    """
    path = folder / _NAME
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with os.fdopen(handle, "rb") as file:
        info = os.fstat(file.fileno())
        if info.st_uid not in (0, os.geteuid()) or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConflictError(
                f"{path} is not trusted",
                "others than root can write it",
                "run 'fastsocket unload', then load again",
            )
        try:
            values = json.loads(file.read())
            if not isinstance(values, dict):
                raise ValueError("it is not one JSON object")
        except (ValueError, TypeError) as error:
            raise ConflictError(
                f"{path} is damaged", str(error), "run 'fastsocket unload', then load again"
            ) from None
    return checked(values, str(path))


def host_parameters(config: Path | None = None, folder: Path = HOST_DIR) -> Parameters:
    """Return what an application starts from: --config, else what is loaded, else the file.

    Raises:
        UsageError: The configuration file is wrong.
        ConflictError: The loaded parameters cannot be trusted.
    """
    if config is not None:
        return load_config(config)
    return loaded(folder) or load_config()


def load(parameters: Parameters, folder: Path = HOST_DIR, dry_run: bool = False) -> list[Change]:
    """Make parameters the host's defaults.

    Returns:
        What was changed, or would be; nothing where the same parameters are loaded already.

    Raises:
        MissingFeatureError: The caller is not root.
        ConflictError: The runtime folder is not root's alone.
    """
    _require_root("load")
    if _loaded_or_damaged(folder) == parameters:
        return []
    path = folder / _NAME
    changes = []
    if not folder.exists():
        changes.append(Change("create", str(folder), "runtime files live here until unload"))
    verb = "replace" if path.exists() else "create"
    why = "applications started from now on take their parameters here"
    changes.append(Change(verb, str(path), why))
    if not dry_run:
        text = json.dumps(asdict(parameters), indent=2)
        write_atomically(private_dir(folder) / _NAME, text + "\n")
        for line in log_lines(parameters):
            journal.append(line, folder)
    return changes


def unload(folder: Path = HOST_DIR, dry_run: bool = False) -> list[Change]:
    """Take back what `load` did: the parameters, the log and, where empty, the runtime folder.

    Applications that run keep the parameters that they started with.

    Returns:
        What was removed, or would be; nothing where nothing was loaded.

    Raises:
        MissingFeatureError: The caller is not root.
    """
    _require_root("unload")
    files = [path for name in (_NAME, "log", "log.1") if os.path.lexists(path := folder / name)]
    whys = {_NAME: "applications started from now on take the defaults"}
    why_log = "nothing of Fastsocket's is left"
    changes = [Change("remove", str(path), whys.get(path.name, why_log)) for path in files]
    if folder.is_dir() and set(folder.iterdir()) <= set(files):
        changes.append(Change("remove", str(folder), "it is empty"))
    if not dry_run:
        for change in changes[: len(files)]:
            Path(change.path).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # an application's socket came in the meantime
            folder.rmdir()
    return changes


def log_lines(parameters: Parameters) -> list[str]:
    """Return the lines that the 2014 module wrote when it was loaded with these parameters."""
    lines = ["Load"]
    if parameters.enable_listen_spawn:
        lines.append(f"Enable Listen Spawn[Mode-{parameters.enable_listen_spawn}]")
    if parameters.enable_receive_flow_deliver:
        lines.append("Enable Receive Flow Deliver")
    if parameters.enable_fast_epoll:
        lines.append("Enable Fast Epoll")
    return lines


def _loaded_or_damaged(folder: Path) -> Parameters | None:
    """Return what is loaded; a file that cannot be used is about to be replaced, so it is None."""
    try:
        return loaded(folder)
    except (ConflictError, UsageError, OSError):
        return None


def _require_root(verb: str) -> None:
    if os.geteuid() != 0:
        raise MissingFeatureError(
            f"{verb} changes the whole host",
            "this user is not root",
            f"run 'sudo fastsocket {verb}'",
        )
