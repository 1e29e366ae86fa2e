# SPDX-License-Identifier: GPL-2.0-or-later
"""A server with worker processes that tells each client who served it.

Its one argument is JSON; each key is optional but ``listen`` or ``inherit``:

listen      [[host, port], ...]: IPv6 where the host has a colon
inherit     descriptors of sockets that listen already
v6only      0 or 1 for IPv6 listeners
backlog     of listen()
again       another backlog, for a second listen() of each worker
workers     processes; 0: this process serves itself
wait        epoll, poll, select, accept (blocking, one listener), or once: select, and from then
            on accept again and again; a list has one for each worker
reuseport   true: each worker opens its own sockets with SO_REUSEPORT
before      [[level, name, hex], ...] to be set before listen()
after       the same after listen()
read        [[level, name, size], ...] to be read from each accepted connection
occupy      descriptors to be taken by dup2() before the workers are forked
close_range [first, last] to be closed before the workers are forked
"""

import ctypes
import json
import os
import select
import signal
import socket
import sys
import time

PLAN = json.loads(sys.argv[1])
LIBC = ctypes.CDLL(None)
ONCE_PAUSE_S = 0.001


def new_listener(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if PLAN.get("reuseport"):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if "v6only" in PLAN:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, PLAN["v6only"])
    for level, name, value in PLAN.get("before", []):
        listener.setsockopt(level, name, bytes.fromhex(value))
    listener.bind((host, port))
    listener.listen(PLAN.get("backlog", 64))
    for level, name, value in PLAN.get("after", []):
        listener.setsockopt(level, name, bytes.fromhex(value))
    return listener


def open_all() -> list[socket.socket]:
    inherited = [socket.socket(fileno=fd) for fd in PLAN.get("inherit", [])]
    return inherited + [new_listener(host, port) for host, port in PLAN.get("listen", [])]


def read_option(connection: socket.socket, level: int, name: int, size: int) -> str:
    try:
        return connection.getsockopt(level, name, size).hex()
    except OSError as error:
        return os.strerror(error.errno)


def answer(connection: socket.socket) -> None:
    with connection:
        connection.setblocking(True)
        options = [read_option(connection, *row) for row in PLAN.get("read", [])]
        said = {"pid": os.getpid(), "cpu": LIBC.sched_getcpu(), "options": options}
        connection.recv(4096)
        connection.sendall(json.dumps(said).encode())


def ready_by(wait: str, listeners: list[socket.socket]):
    """Return a function that waits and yields the listeners that are ready."""
    by_fd = {listener.fileno(): listener for listener in listeners}
    if wait == "accept":
        return lambda: listeners
    if wait == "once":
        select.select(listeners, [], [], 0)
        return lambda: time.sleep(ONCE_PAUSE_S) or listeners
    if wait == "select":
        return lambda: select.select(listeners, [], [])[0]
    poller = select.epoll() if wait == "epoll" else select.poll()
    for fd in by_fd:
        poller.register(fd, select.POLLIN)
    return lambda: [by_fd[fd] for fd, _ in poller.poll()]


def serve(listeners: list[socket.socket], number: int = 0) -> None:
    wait = PLAN.get("wait", "epoll")
    wait = wait if isinstance(wait, str) else wait[number]
    for listener in listeners:
        if "again" in PLAN:
            listener.listen(PLAN["again"])
        listener.setblocking(wait == "accept")
    ready = ready_by(wait, listeners)
    while True:
        for listener in ready():
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                continue
            answer(connection)


def main() -> None:
    listeners = [] if PLAN.get("reuseport") else open_all()
    for fd in PLAN.get("occupy", []):
        os.dup2(1, fd)
    if "close_range" in PLAN:
        os.closerange(PLAN["close_range"][0], PLAN["close_range"][1] + 1)
    if not PLAN.get("workers", 2):
        serve(listeners or open_all())
    children = []
    for number in range(PLAN.get("workers", 2)):
        child = os.fork()
        if not child:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            serve(listeners or open_all(), number)
        children.append(child)

    def end(number: int, frame: object) -> None:
        for child in children:
            os.kill(child, signal.SIGTERM)
            os.waitpid(child, 0)
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    while True:
        time.sleep(3600)


main()
