# SPDX-License-Identifier: GPL-2.0-or-later
"""Opens connections in many ways, and prints as JSON which local ports they got.

Its first argument is a function below, its others are that function's.
"""

import errno
import json
import os
import socket
import struct
import sys
from typing import Any

PORT_RANGE = 51  # IP_LOCAL_PORT_RANGE
INCOMING_CPU = 49  # SO_INCOMING_CPU
FOUR, SIX = "10.8.0.1", "fd08::1"


def family_of(host: str) -> int:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def listener(host: str, port: int = 0) -> socket.socket:
    return socket.create_server((host, port), family=family_of(host), backlog=4096)


def by_cpu(count: str) -> Any:
    """Open connections on each CPU: {address: {CPU: ports}}."""
    found: dict[str, dict[int, list[int]]] = {}
    cpus = sorted(os.sched_getaffinity(0))
    for at, host in (FOUR, FOUR), (SIX, SIX), (FOUR, f"::ffff:{FOUR}"):
        with listener(at) as server:
            found[host] = {cpu: [] for cpu in cpus}
            for cpu in cpus:
                os.sched_setaffinity(0, {cpu})
                for _ in range(int(count)):
                    with socket.socket(family_of(host)) as client:
                        client.connect((host, server.getsockname()[1]))
                        found[host][cpu].append(client.getsockname()[1])
    return found


def outcome(call: Any, *arguments: Any) -> str:
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def ways() -> Any:
    """Return what an application notices, and the ports of those ways that leave them open."""
    seen: dict[str, Any] = {}
    ports: dict[str, int] = {}
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    server = listener(FOUR)
    at = server.getsockname()

    with socket.socket() as client:
        client.bind((FOUR, 0))
        client.connect(at)
        ports["bound to an address"] = client.getsockname()[1]
    with socket.socket(socket.AF_INET6) as client, listener(SIX) as sixth:
        client.bind((SIX, 0))
        client.connect(sixth.getsockname())
        ports["bound to an IPv6 address"] = client.getsockname()[1]
    with socket.socket() as client:
        client.bind((FOUR, 0))
        port = client.getsockname()[1]
        seen["a bound socket has a port"] = port > 0
        client.connect(at)
        seen["which stays"] = client.getsockname()[1] == port
    with socket.socket() as client, socket.socket(fileno=os.dup(client.fileno())) as copy:
        client.bind((FOUR, 0))
        seen["its copy shows it"] = copy.getsockname()[1] == client.getsockname()[1] > 0
    with socket.socket() as client:
        client.bind((FOUR, 0))
        seen["a second bind"] = outcome(client.bind, (FOUR, 0))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.listen()
        with socket.create_connection(client.getsockname()) as caller:
            seen["a bound socket listens"] = caller.getpeername() == client.getsockname()
    with socket.socket() as client:
        client.bind((FOUR, 5555))
        client.connect(at)
        seen["own port"] = client.getsockname()[1]
    with socket.socket() as client:
        client.setsockopt(socket.IPPROTO_IP, PORT_RANGE, struct.pack("=HH", 45000, 45001))
        client.connect(at)
        seen["own range"] = client.getsockname()[1] in (45000, 45001)
        seen["own range reads"] = client.getsockopt(socket.IPPROTO_IP, PORT_RANGE)
    with socket.socket() as client:
        client.setblocking(False)
        seen["without blocking"] = outcome(client.connect, at)
        client.settimeout(10)
        client.send(b"?")
        seen["again"] = outcome(client.connect, at)
        ports["without blocking"] = client.getsockname()[1]
    with socket.socket() as client:
        seen["nobody there"] = outcome(client.connect, (FOUR, 1))
        seen["then somebody"] = outcome(client.connect, at)
        ports["after a refusal"] = client.getsockname()[1]
    with socket.socket() as client, socket.socket() as port_less:
        seen["no address"] = outcome(client.bind, ("192.0.2.7", 0))
        seen["no route"] = outcome(port_less.connect, ("192.0.2.7", 1))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind((FOUR, 0))
        datagrams.connect(at)
        seen["UDP reads"] = datagrams.getsockopt(socket.IPPROTO_IP, PORT_RANGE)
        seen["UDP has a port"] = datagrams.getsockname()[1] > 0
    server.close()
    return {"seen": seen, "ports": ports}


def hold(count: str) -> Any:
    """Hold connections from one CPU: {"ports": each, "errors": names of what the others got}."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with listener(FOUR, 5000) as server:  # not a port of those that run out
        held, errors = [], []
        for _ in range(int(count)):
            client = socket.socket()
            held.append(client)
            failed = outcome(client.connect, server.getsockname())
            errors += [] if failed == "done" else [failed]
        ports = [client.getsockname()[1] for client in held]
        return {"ports": [port for port in ports if port], "errors": errors}


def flood(count: str) -> Any:
    """Open connections one after the other, each closed here first: how many failed."""
    with listener(FOUR) as server:
        at = server.getsockname()
        if (child := os.fork()) == 0:
            for _ in range(int(count)):
                connection, _ = server.accept()
                connection.recv(1)  # the other end closes first, and keeps the port for a minute
                connection.close()
            os._exit(0)
        failed = 0
        for _ in range(int(count)):
            with socket.socket() as client:
                client.settimeout(20)
                failed += outcome(client.connect, at) != "done"
        os.kill(child, 9)
        os.waitpid(child, 0)
    return {"failed": failed}


def answer(host: str, port: str) -> Any:
    """Answer each connection with a byte, for as long as one says anything but "q"."""
    seen: set[int] = set()
    with socket.create_server((host, int(port)), backlog=4096) as server:
        print("listening", flush=True)
        while True:
            connection, _ = server.accept()
            with connection:
                word = connection.recv(1)
                seen.add(connection.getsockopt(socket.SOL_SOCKET, INCOMING_CPU))
                if word == b"q":
                    return {"cpus": sorted(seen)}
                connection.send(word)


def ask(host: str, port: str, count: str, end: str = "") -> Any:
    """Open connections to `answer` on each CPU, and at the end tell it to end if so told."""
    cpus = sorted(os.sched_getaffinity(0))
    for cpu in cpus:
        os.sched_setaffinity(0, {cpu})
        for _ in range(int(count)):
            with socket.create_connection((host, int(port)), 60) as client:
                client.send(b"?")
                assert client.recv(1) == b"?"
                client.recv(1)
    if end:
        socket.create_connection((host, int(port)), 60).send(b"q")
    return {"connections": int(count) * len(cpus)}


FUNCTIONS = {
    "by_cpu": by_cpu,
    "ways": ways,
    "hold": hold,
    "flood": flood,
    "answer": answer,
    "ask": ask,
}

if __name__ == "__main__":
    print(json.dumps(FUNCTIONS[sys.argv[1]](*sys.argv[2:])), flush=True)
