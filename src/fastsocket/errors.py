# SPDX-License-Identifier: GPL-2.0-or-later
"""The one tree of errors, each with the exit code that the command line gives it."""

__all__ = [
    "ConflictError",
    "FastsocketError",
    "MissingFeatureError",
    "UsageError",
]


class FastsocketError(Exception):
    """Any failure that is reported in one line: what was wrong, why, what to do.

    Args:
        what: What went wrong, without a trailing full stop.
        why: The cause, where it is known.
        todo: What the user can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", todo: str = "") -> None:
        self.what, self.why, self.todo = what, why, todo
        super().__init__("; ".join(part for part in (what, why, todo) if part))


class UsageError(FastsocketError):
    """The command line, a configuration file or a rule is wrong."""

    exit_code = 2


class MissingFeatureError(FastsocketError):
    """A privilege or a kernel feature that the request needs is not there."""

    exit_code = 3


class ConflictError(FastsocketError):
    """The request conflicts with the state of the host, such as a foreign XDP program."""

    exit_code = 4
