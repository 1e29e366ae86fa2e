# SPDX-License-Identifier: GPL-2.0-or-later
"""The local fast path where its ends are in other network namespaces."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from local_tools import PATIENCE_S, exchange, pair

from fastsocket.local.fastpath import FastPath

pytestmark = pytest.mark.netns


@contextmanager
def namespaces() -> Iterator[Callable[[str], list[str]]]:
    """Two namespaces joined by veth, 10.9.8.1 and 10.9.8.2; yields how to run words in one."""
    names = {end: f"fs-local-{end}-{os.getpid()}" for end in "ab"}

    def within(end: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{names[end]}"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in names.values():
            ip("netns", "add", name)
        ip(
            *("link", "add", "veth0", "netns", names["a"], "type", "veth"),
            *("peer", "name", "veth0", "netns", names["b"]),
        )
        for number, name in enumerate(names.values(), 1):
            ip("-n", name, "addr", "add", f"10.9.8.{number}/24", "dev", "veth0")
            ip("-n", name, "link", "set", "veth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield within
    finally:
        for name in names.values():
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


SERVER = """
import socket, sys
from fastsocket.local.fastpath import FastPath
with socket.create_server(("", 7007)) as listener, FastPath(7007) as fast:
    print("ready", flush=True)
    server, _ = listener.accept()
    server.settimeout(5)
    server.send(b"go")  # what comes before the server has accepted is TCP's
    while data := server.recv(64):
        server.send(data)
    print(fast.counters.connections, fast.counters.redirected, flush=True)
"""
CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], 7007), 5) as client:
    assert client.recv(64) == b"go"
    for number in range(10):
        client.send(b"%d" % number)
        assert client.recv(64) == b"%d" % number
"""


def across(server_prefix: list[str], client_prefix: list[str], address: str) -> list[int]:
    """Serve and call from two places; return the connections taken and the messages redirected."""
    with subprocess.Popen(
        [*server_prefix, sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout
        try:
            assert server.stdout.readline() == "ready\n"
            subprocess.run([*client_prefix, sys.executable, "-c", CLIENT, address], check=True)
            return [int(word) for word in server.stdout.readline().split()]
        finally:
            server.kill()


def test_across_veth() -> None:
    with namespaces() as within:
        assert across(within("a"), within("b"), "10.9.8.1") == [1, 21]


LEFT_ALONE = """
import socket, sys
from fastsocket.local.fastpath import FastPath
with socket.create_server(("", 7007)) as listener, FastPath(7007) as fast:
    print("ready", flush=True)
    server, _ = listener.accept()
    server.settimeout(5)
    server.send(b"go")
    assert server.recv(64) == b"here"
    server.send(b"hello")
    sys.stdin.readline()  # until the peer is gone, and with it the way to it
    before = fast.counters.redirected
    server.setblocking(False)
    held = 0
    try:
        while held < 64 << 20:
            held += server.send(bytes(65536))
    except BlockingIOError:
        pass
    print(before, fast.counters.redirected - before, held < 64 << 20, fast.sockets(), flush=True)
    server.close()
"""
VANISHES = """
import os, socket, subprocess, sys
client = socket.create_connection((sys.argv[1], 7007), 5)
assert client.recv(64) == b"go"
client.send(b"here")
assert client.recv(64) == b"hello"
subprocess.run(["ip", "link", "del", "veth0"], check=True)
os.kill(os.getpid(), 9)
"""


def test_a_peer_whose_namespace_is_gone() -> None:
    """Its last words never arrive: what is sent to it waits in TCP's buffer, as without us."""
    with namespaces() as within:
        words = [*within("a"), sys.executable, "-c", LEFT_ALONE]
        with subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdin
            assert server.stdout
            try:
                assert server.stdout.readline() == "ready\n"
                peer = [*within("b"), sys.executable, "-c", VANISHES, "10.9.8.1"]
                assert subprocess.run(peer, check=False).returncode == -signal.SIGKILL
                server.stdin.write("gone\n")
                server.stdin.flush()
                assert server.stdout.readline().split() == ["3", "0", "True", "1"]
            finally:
                server.kill()


def test_translated_addresses_are_plain_tcp() -> None:
    rules = "add table ip t; add chain ip t c {type nat hook postrouting priority 100;}; "
    rules += "add rule ip t c tcp dport 7007 snat to 10.9.8.77"
    with namespaces() as within:
        address = [*within("b"), "ip", "addr", "add", "10.9.8.77/24", "dev", "veth0"]
        subprocess.run(address, check=True)
        done = subprocess.run(
            [*within("b"), "nft", rules], check=False, capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"no address translation here: {done.stderr.strip()}")
        assert across(within("a"), within("b"), "10.9.8.1") == [0, 0]


def test_the_same_port_in_another_namespace() -> None:
    """The other server is none of ours, even if its addresses are the same."""
    with namespaces() as within, socket.create_server(("127.0.0.1", 7007)) as ours:
        ours.settimeout(PATIENCE_S)
        with FastPath(7007) as fast:
            assert across(within("a"), within("a"), "127.0.0.1") == [1, 21]
            assert fast.counters.connections == 0
            with pair(ours) as (client, server):
                exchange(client, server)
            assert fast.counters.redirected == 20
