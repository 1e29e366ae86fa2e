# SPDX-License-Identifier: GPL-2.0-or-later
"""Does with epoll what it reads, a JSON list of steps a line, and answers with what came of each.

Each line begins with new epoll instances and new connections. The calls are those of the C library,
so they may be made wrongly, too. Connections are of AF_UNIX: what is sent there is there at once.
"""

import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
LISTENING = f"\0fastsocket-epolls-{os.getpid()}"
FIRST, SECOND = 0, 1  # of the instances
ADD = 1  # EPOLL_CTL_ADD


class Buffer(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_char_p), ("len", ctypes.c_size_t))


class Rights(ctypes.Structure):
    """struct cmsghdr, and the descriptor that it passes."""

    _fields_ = (
        ("len", ctypes.c_size_t),
        ("level", ctypes.c_int),
        ("type", ctypes.c_int),
        ("fd", ctypes.c_int),
    )


class Message(ctypes.Structure):
    """struct msghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.POINTER(Buffer)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.POINTER(Rights)),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class SentMessage(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (("header", Message), ("sent", ctypes.c_uint))


class Event(ctypes.Structure):
    """struct epoll_event of x86-64 and of others."""

    _pack_ = 1 if os.uname().machine == "x86_64" else 8
    _fields_ = (("events", ctypes.c_uint32), ("data", ctypes.c_uint64))


def address_of(name: str) -> bytes:
    """struct sockaddr_un of a name without a file."""
    return struct.pack("=H", socket.AF_UNIX) + name.encode()


def told(result: int) -> int | str:
    return errno.errorcode[ctypes.get_errno()] if result < 0 else result


class World:
    """What the steps of one line work on; a step is the name of a method and its arguments."""

    def __init__(self, listener: socket.socket, count: int, instances: int = 2) -> None:
        self.listener = listener
        self.epolls = [libc.epoll_create1(0) for _ in range(instances)]
        self.clients: list[socket.socket | None] = [None] * count
        self.fds = [-1] * count
        self.data: dict[int, int] = {}
        self.copies: list[int] = []
        self.children: list[int] = []
        for each in range(count):
            self.accept(each)

    def accept(self, each: int) -> str:
        """A new connection takes the place of a closed one."""
        if self.fds[each] >= 0:
            return "open"
        client = self.clients[each] = socket.socket(socket.AF_UNIX)
        client.connect(LISTENING)
        self.fds[each] = libc.accept4(self.listener.fileno(), None, None, socket.SOCK_NONBLOCK)
        return "accepted"

    def socket(self, each: int) -> str:
        """A socket that is not connected yet takes that place."""
        if self.fds[each] >= 0:
            return "open"
        self.fds[each] = libc.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0)
        return "made"

    def listen(self, each: int) -> Any:
        fd = self.fds[each]
        address = address_of(f"{LISTENING}-{fd}")
        return [told(libc.bind(fd, address, len(address))), told(libc.listen(fd, 1))]

    def connect(self, each: int) -> Any:
        """A new connection, which this process opens, of a socket that is there or not."""
        if self.clients[each]:
            return "open"
        self.socket(each)
        address = address_of(LISTENING)
        if (result := libc.connect(self.fds[each], address, len(address))) < 0:
            return told(result)
        libc.fcntl(self.fds[each], fcntl.F_SETFL, os.O_NONBLOCK)
        self.clients[each] = self.listener.accept()[0]
        return "connected"

    def more(self, count: int) -> None:
        """More connections, after the others."""
        self.fds += [-1] * count
        self.clients += [None] * count
        for each in range(len(self.fds) - count, len(self.fds)):
            self.accept(each)

    def ctl(self, epoll: int, op: int, each: int, events: int, by_fd: bool = True) -> Any:
        fd = self.fds[each]
        data = fd if by_fd else 1 << 32 | 1000 + each
        self.data[data] = each
        event = Event(events, data)
        return told(libc.epoll_ctl(self.epolls[epoll], op, fd, ctypes.byref(event)))

    def wait(self, epoll: int, timeout: int) -> Any:
        events = (Event * 16)()
        count = libc.epoll_wait(self.epolls[epoll], events, 16, timeout)
        found = [(self.data.get(each.data, "?"), each.events) for each in events[: max(count, 0)]]
        return sorted(found, key=str) if count >= 0 else told(count)

    def poll(self, epoll: int) -> Any:
        """Whether the instance has something to tell, as another instance or poll() sees it."""
        poll = select.poll()
        try:
            poll.register(self.epolls[epoll], select.POLLIN)
        except ValueError:
            return "closed"
        return [events for _, events in poll.poll(0)]

    def send(self, each: int) -> Any:
        client = self.clients[each]
        try:
            return client and client.send(b"x")
        except OSError as error:
            return error.errno

    def receive(self, each: int) -> Any:
        buffer = ctypes.create_string_buffer(64)
        return told(libc.recv(self.fds[each], buffer, 64, 0))

    def leave(self, each: int) -> None:
        """The client closes."""
        client = self.clients[each]
        if client:
            client.close()
        self.clients[each] = None

    def close(self, each: int) -> Any:
        result = libc.close(self.fds[each])
        self.fds[each] = -1
        self.leave(each)
        return told(result)

    def replace(self, each: int, other: int) -> Any:
        """Close a connection as a stream, and give its number to a copy of another."""
        if min(self.fds[each], self.fds[other]) < 0 or each == other:
            return "closed"
        libc.fdopen.restype = ctypes.c_void_p
        result = libc.fclose(ctypes.c_void_p(libc.fdopen(self.fds[each], b"r+")))
        self.fds[each] = libc.dup(self.fds[other])
        return told(result)

    def dup(self, each: int) -> Any:
        copy = libc.dup(self.fds[each])
        self.copies += [copy] if copy >= 0 else []
        return copy >= 0

    def over(self, each: int, other: int) -> Any:
        """Put a copy of one connection in the place of another's descriptor."""
        if min(self.fds[each], self.fds[other]) < 0:
            return "closed"
        return libc.dup2(self.fds[each], self.fds[other]) == self.fds[other]

    def dup_epoll(self, epoll: int) -> Any:
        copy = libc.dup(self.epolls[epoll])
        self.copies += [copy] if copy >= 0 else []
        return copy >= 0

    def close_epoll(self, epoll: int) -> Any:
        result = told(libc.close(self.epolls[epoll]))
        self.epolls[epoll] = libc.epoll_create1(0)
        return result

    def pass_on(self, each: int) -> Any:
        """To a socket where nobody takes it out, which holds it."""
        if self.fds[each] < 0:
            return "closed"
        ends = socket.socketpair()
        socket.send_fds(ends[0], [b"x"], [self.fds[each]])
        self.copies += [end.detach() for end in ends]
        return "passed"

    def pass_with_second(self, each: int) -> Any:
        """The same with the second of the messages of one call."""
        ends = socket.socketpair()
        data = Buffer(b"x", 1)
        length = Rights.fd.offset + Rights.fd.size
        rights = Rights(length, socket.SOL_SOCKET, socket.SCM_RIGHTS, self.fds[each])
        messages = (SentMessage * 2)()
        for message in messages:
            message.header.iov, message.header.iovlen = ctypes.pointer(data), 1
        messages[1].header.control = ctypes.pointer(rights)
        messages[1].header.controllen = ctypes.sizeof(rights)
        result = told(libc.sendmmsg(ends[0].fileno(), messages, 2, 0))
        self.copies += [end.detach() for end in ends]
        return result

    def nest(self, events: int) -> Any:
        """The first instance becomes a member of the second."""
        self.data[9999] = 99
        event = Event(events, 9999)
        first, second = self.epolls[FIRST], self.epolls[SECOND]
        return told(libc.epoll_ctl(second, ADD, first, ctypes.byref(event)))

    def fork(self) -> None:
        """A child has all of it until the line ends."""
        pid = os.fork()
        if pid == 0:
            signal.pause()
        self.children.append(pid)

    def handler(self, *step: Any) -> Any:
        """Take that step in a handler of a signal."""
        found: list[Any] = []
        signal.signal(signal.SIGUSR1, lambda *_: found.append(self.take(step)))
        os.kill(os.getpid(), signal.SIGUSR1)
        return found

    def thread(self, *step: Any) -> Any:
        """Take that step in another thread."""
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(self.take(step)))
        thread.start()
        thread.join()
        return found

    def calls(self) -> int:
        """How many epoll_ctl calls the library has made."""
        return int(libc.epoll_ctl_calls())

    def refuse(self, error: int) -> None:
        """From now on additions fail in the kernel with that error; 0 for no longer."""
        libc.epoll_ctl_refuse(error)

    def take(self, step: Any) -> Any:
        return getattr(self, step[0])(*step[1:])

    def end(self) -> None:
        for pid in self.children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for fd in self.fds + self.copies + self.epolls:
            if fd >= 0:
                libc.close(fd)
        for client in self.clients:
            if client:
                client.close()


def main() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(LISTENING)
    listener.listen(64)
    for line in sys.stdin:
        steps = json.loads(line)
        world = World(listener, 4)
        print(json.dumps([world.take(step) for step in steps]), flush=True)
        world.end()


main()
