# SPDX-License-Identifier: GPL-2.0-or-later
"""The launcher: prepares the page, starts the keeper, and becomes the application."""

import contextlib
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from fastsocket.app.protocol import new_socket_name
from fastsocket.app.resume import SEPARATOR, resume_words
from fastsocket.app.scheduling import take_batch
from fastsocket.bpf.objects import map_info
from fastsocket.config import Parameters
from fastsocket.errors import FastsocketError
from fastsocket.host.elf import NotExecutableError, classify, resolve
from fastsocket.host.limits import live_limits
from fastsocket.host.safety import require_trusted
from fastsocket.host.topology import order_physical_first, read_topology
from fastsocket.listen.page import StatusPage
from fastsocket.native import library_name, native_file

if TYPE_CHECKING:
    from fastsocket.app.deliver import Deliver

__all__ = ["cpus_to_fill", "fast_open_lacks", "launch"]

FAST_OPEN = Path("/proc/sys/net/ipv4/tcp_fastopen")


def cpus_to_fill() -> list[int]:
    """Return the CPUs that workers are pinned to, physical cores first.

    None under a quota below the CPUs that may be used: there, every container with such a quota
    would crowd the same first CPUs.
    """
    limits = live_limits()
    if limits.quota is not None and limits.quota < len(limits.allowed):
        return []
    return order_physical_first(read_topology(), limits.allowed)


def _start_keeper(
    page: StatusPage, command: Sequence[str], local_port: int | None, deliver: "Deliver | None"
) -> str:
    """Start the keeper of this process, reparented away from it; return its socket's name."""
    pid = os.getpid()
    name = new_socket_name(pid)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.bind("\0" + name)
    server.listen(64)
    child = os.fork()
    if child:
        os.waitpid(child, 0)  # the application must not find a child that it did not start
    elif os.fork():
        os._exit(0)
    else:
        _keep_only({server.fileno(), page.fd} | (deliver.fds if deliver else set()))
        os.environ["FASTSOCKET_LISTEN_SPAWN"] = "0"  # the keeper's own use of the library
        # Imported here, so that the application does not wait for it.
        from fastsocket.app.keeper import Keeper, become_keeper

        keeper = Keeper(
            page, server, pid, name, list(command), local_port=local_port, deliver=deliver
        )
        become_keeper(keeper)
    server.close()
    return name


def _keep_only(wanted: set[int]) -> None:
    """Close what the keeper inherited, such as the listeners of a socket-activated service.

    Held by the keeper they would keep their ports taken after the application closed them.
    """
    for fd in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208  # pathlib is slow to import
        if fd > 2 and fd not in wanted:
            with contextlib.suppress(OSError):  # the listing's own descriptor is closed already
                os.close(fd)


def _environment(library: Path, parameters: Parameters) -> dict[str, str]:
    environment = dict(os.environ)
    others = environment.get("LD_PRELOAD")
    environment["LD_PRELOAD"] = f"{library}:{others}" if others else str(library)
    environment["FASTSOCKET_LISTEN_SPAWN"] = str(parameters.enable_listen_spawn)
    environment["FASTSOCKET_BUSY_POLL"] = str(parameters.busy_poll_us)
    environment["FASTSOCKET_LEAN"] = ",".join(_lean_words(parameters))
    return environment


def _lean_words(parameters: Parameters) -> list[str]:
    """Return what lean connections may use besides, and say where the kernel does not let them."""
    asked = {"defer-accept": parameters.defer_accept, "fast-open": parameters.fast_open}
    words = [word for word, wanted in asked.items() if wanted]
    if words and parameters.lean == "off":
        print(f"fastsocket: {' and '.join(words)} is for --lean auto: not used", file=sys.stderr)
        return []
    if parameters.fast_open and (lacks := fast_open_lacks(FAST_OPEN.read_text())):
        print(f"fastsocket: TCP Fast Open is off for {lacks}", file=sys.stderr)
    return words


def _of_library(parameters: Parameters) -> str:
    """Return what was asked for that the library does where it gives workers their sockets."""
    asked = {
        "fast epoll": parameters.enable_fast_epoll,
        "defer-accept": parameters.defer_accept,
        "fast-open": parameters.fast_open,
        "busy polling": parameters.busy_poll_us,
    }
    return " and ".join(name for name, wanted in asked.items() if wanted)


def fast_open_lacks(setting: str) -> str:
    """Return who may not use TCP Fast Open by that value of its sysctl, and what allows it."""
    bits = int(setting)
    lacking = [who for bit, who in ((1, "clients"), (2, "servers")) if not bits & bit]
    if not lacking:
        return ""
    return f"{' and '.join(lacking)}: sysctl -w net.ipv4.tcp_fastopen={bits | 3} allows it"


def _deliver(preloads: bool) -> "Deliver | None":
    """Prepare receive flow deliver; where that cannot be, say why and go on without."""
    from fastsocket.app.deliver import Deliver  # only few applications need it

    try:
        return Deliver(preloads)
    except FastsocketError as error:
        _go_without("receive flow deliver", error)
        return None


def _go_without(what: str, error: FastsocketError) -> None:
    print(f"fastsocket: runs without {what}: {error}", file=sys.stderr)


def _schedule() -> None:
    """Take the policy and the time slice of --batch; where that cannot be, say why and go on."""
    try:
        take_batch()
    except FastsocketError as error:
        _go_without("batch", error)


def launch(
    command: Sequence[str], parameters: Parameters, local_port: int | None = None
) -> NoReturn:
    """Replace this process by `command`, accelerated where the preload can reach it.

    Args:
        command: The command and its arguments, at least one word.
        parameters: How it is accelerated.
        local_port: Its port whose connections within this host take the local fast path.

    Raises:
        CommandNotFoundError: No such command.
        NotExecutableError: It cannot be executed.
        FastsocketError: The library is missing, or others than root could replace it.
    """
    path = resolve(command[0])
    program = classify(path)
    environment = dict(os.environ)
    deliver = _deliver(program.preloadable) if parameters.enable_receive_flow_deliver else None
    by_library = deliver is not None and deliver.hooks is None
    preloads = program.preloadable and (parameters.enable_listen_spawn != 0 or by_library)
    if not program.preloadable:
        given = {
            "its outgoing connections steered": deliver,
            "the policy of --batch": parameters.batch,
        }
        besides = " and ".join(name for name, wanted in given.items() if wanted)
        how = f"gets only {besides}" if besides else "runs as without Fastsocket"
        print(f"fastsocket: {how}: {program.why}", file=sys.stderr)
    elif not parameters.enable_listen_spawn and (unused := _of_library(parameters)):
        print(f"fastsocket: {unused}: not used, for listen spawn is off", file=sys.stderr)
    if not (program.preloadable and parameters.enable_listen_spawn):
        parameters = replace(parameters, busy_poll_us=0)  # as the status page tells it
    with contextlib.ExitStack() as undo:
        if deliver:
            undo.callback(deliver.close)  # unless the keeper has it, nobody else would
        if preloads:
            library = native_file(library_name(parameters.lean, bool(parameters.enable_fast_epoll)))
            require_trusted(library)
            environment = _environment(library, parameters)
            environment.update(deliver.environment if deliver else {})
        if preloads or deliver or local_port is not None:
            page = StatusPage(cpus_to_fill(), parameters)
            keeper = _start_keeper(page, command, local_port, deliver)
            if preloads:
                environment["FASTSOCKET_KEEPER"] = keeper
            if preloads and page.map:
                words = resume_words(os.getpid(), map_info(page.map.fd).number, keeper)
                environment["FASTSOCKET_KEEPER_COMMAND"] = SEPARATOR.join(words)
        undo.pop_all()
    if deliver:
        try:
            deliver.enter()
        except FastsocketError as error:
            _go_without("receive flow deliver", error)
    if parameters.batch:
        _schedule()
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execve(path, list(command), environment)
    except OSError as error:
        what = f"{command[0]} cannot be executed"
        raise NotExecutableError(what, error.strerror or "") from error
