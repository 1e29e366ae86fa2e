# SPDX-License-Identifier: GPL-2.0-or-later
"""The launcher: prepares the page, starts the keeper, and becomes the application."""

import os
import shutil
import socket
import sys
from collections.abc import Sequence
from typing import NoReturn

from fastsocket.app.keeper import Keeper, become_keeper
from fastsocket.app.protocol import socket_name
from fastsocket.errors import FastsocketError
from fastsocket.listen.page import StatusPage
from fastsocket.native import native_file

__all__ = ["NotFoundError", "launch"]


class NotFoundError(FastsocketError):
    """The command does not exist; the exit code is a shell's."""

    exit_code = 127


class NotExecutableError(FastsocketError):
    """The command cannot be executed; the exit code is a shell's."""

    exit_code = 126


def _start_keeper(page: StatusPage, command: Sequence[str]) -> str:
    """Start the keeper of this process, reparented away from it; return its socket's name."""
    pid = os.getpid()
    name = socket_name(pid)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.bind("\0" + name)
    server.listen(64)
    child = os.fork()
    if child:
        os.waitpid(child, 0)  # the application must not find a child that it did not start
        server.close()
        return name
    if os.fork():
        os._exit(0)
    become_keeper(Keeper(page, server, pid, list(command)))
    raise AssertionError  # not reached


def launch(command: Sequence[str], listen_spawn: int, cpus: Sequence[int]) -> NoReturn:
    """Replace this process by `command`, accelerated.

    Args:
        command: The command and its arguments, at least one word.
        listen_spawn: 0 off, 1 the application pins its workers, 2 Fastsocket does.
        cpus: CPUs to fill, in that order.

    Raises:
        NotFoundError: No such command.
        FastsocketError: It cannot be executed.
    """
    path = command[0] if "/" in command[0] else shutil.which(command[0])
    if not path or not os.path.exists(path):  # noqa: PTH110  # pathlib is slow to import
        raise NotFoundError(f"{command[0]}: command not found")
    library = native_file("libfsocket.so")
    environment = dict(os.environ)
    preload = environment.get("LD_PRELOAD")
    environment["LD_PRELOAD"] = f"{library}:{preload}" if preload else str(library)
    environment["FASTSOCKET_LISTEN_SPAWN"] = str(listen_spawn)
    if listen_spawn:
        page = StatusPage(cpus, listen_spawn)
        environment["FASTSOCKET_KEEPER"] = _start_keeper(page, command)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execve(path, list(command), environment)
    except OSError as error:
        raise NotExecutableError(
            f"{command[0]} cannot be executed", error.strerror or ""
        ) from error
