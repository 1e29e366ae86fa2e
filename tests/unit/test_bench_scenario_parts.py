# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of the scenarios that need no server."""

import json
import os
import select
import socket
import subprocess
import sys

import pytest

from fastsocket.bench.behaviours import Said, lateness
from fastsocket.bench.modes import parse_tier
from fastsocket.bench.scenarios import SCENARIOS
from fastsocket.bench.scenarios.longlived import established, live_connections
from fastsocket.bench.scenarios.stall import SlowLog
from fastsocket.bench.session import Request, perform
from fastsocket.bench.stores import SERVERS
from fastsocket.bench.trouble import workers_of
from fastsocket.errors import UsageError

pytestmark = pytest.mark.unit

# Two connections of port 8080 (1F90), one of them closing, and a listener.
TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 100 1
   1: 0100007F:1F90 0200007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 101 1
   2: 0200007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 102 1
   3: 0100007F:1F90 0200007F:C351 08 00000000:00000000 00:00000000 00000000     0        0 103 1
"""


def test_established_takes_the_server_side_only():
    assert established(TCP, 8080) == {"101"}
    assert established(TCP, 50000) == {"102"}
    assert established("header only\n", 8080) == set()


def test_live_connections_are_counted_in_their_process():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
        served = [listener.accept()[0] for _ in range(3)]
        inodes = {str(os.fstat(each.fileno()).st_ino) for each in served}
        assert live_connections([os.getpid(), 2**22], inodes) == {os.getpid(): 3}
        assert live_connections([os.getpid()], {"0"}) == {}
        for each in clients + served:
            each.close()


def test_workers_are_the_children_of_the_same_program():
    code = """if True:
        import os, signal, subprocess
        other = subprocess.Popen(["sleep", "30"])
        worker = os.fork() or signal.pause()
        print(worker, other.pid, flush=True)
        signal.sigwait([signal.SIGTERM])
        other.kill(), os.kill(worker, signal.SIGKILL)
    """
    block = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
    master = subprocess.Popen([sys.executable, "-c", block + code], stdout=subprocess.PIPE)
    try:
        worker, _ = map(int, master.stdout.readline().split())
        assert workers_of(master.pid) == [worker]
    finally:
        master.terminate()
        master.wait()
        master.stdout.close()
    assert workers_of(master.pid) == []


def test_slow_log_blocks_a_writer_until_it_is_released(tmp_path):
    with SlowLog(tmp_path / "log") as log:
        writer = os.open(log.path, os.O_WRONLY | os.O_NONBLOCK)
        log.block()
        with pytest.raises(BlockingIOError):
            os.write(writer, b"x")
        log.release()
        assert select.select([], [writer], [], 0)[1] == [writer]
        assert os.write(writer, b"one line\n") == 9
        os.close(writer)


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_scenarios_name_known_servers_and_themselves(name):
    scenario = SCENARIOS[name]
    assert scenario.name == name
    assert set(scenario.servers) <= set(SERVERS)
    assert all(scenario.metrics.values())


def test_lateness_is_that_of_the_worst_piece():
    stock = Said(b"ab", 2, 0, ((1.0, 1), (3.0, 2), (3.5, 2)))
    assert lateness(Said(b"ab", 2, 0, ((2.5, 1), (3.0, 2), (3.5, 2))), stock) == 1.5
    assert lateness(Said(b"ab", 2, 0, ((1.25, 2), (4.0, 2))), stock) == 0.5
    assert lateness(Said(b"ab", 2, 0, ((1.0, 1), (3.0, 2), (3.25, 2))), stock) == 0


def test_options_of_a_client_are_for_local():
    with pytest.raises(UsageError, match="--client-options"):
        perform(Request("short", client_options=["--fast-epoll"]), quiet=True)


def test_a_lean_client_is_for_short_connections():
    with pytest.raises(UsageError, match="--lean-client"):
        perform(Request("longlived", lean_client=True), quiet=True)
    with pytest.raises(UsageError, match="wrk cannot be lean"):
        perform(Request("short", client="wrk", lean_client=True), quiet=True)


@pytest.mark.parametrize("name", ["stall", "crash", "longlived", "keepalive"])
def test_scenarios_refuse_clients_and_servers_that_cannot(name):
    with pytest.raises(UsageError, match="wrk"):
        perform(Request(name, client="wrk"), quiet=True)
    with pytest.raises(UsageError, match="cannot be run with lighttpd"):
        perform(Request(name, server="lighttpd"), quiet=True)


def test_tier_is_told_with_what_is_missing():
    status = {"applications": [{"tier": "classic", "reasons": {"select": "no CAP_BPF"}}]}
    assert parse_tier(json.dumps(status)) == "Fastsocket ran in tier classic; select: no CAP_BPF"
    for output in ("", "[]", '{"applications": []}'):
        assert "unknown" in parse_tier(output)
