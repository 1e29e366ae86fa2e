# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules on veth devices: attach, steer, exchange under load, refuse, detach."""

import json
import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fastsocket.bpf.libbpf import BpfObject, possible_cpus
from fastsocket.cli.steer import command
from fastsocket.errors import ConflictError, MissingFeatureError, UsageError
from fastsocket.steer import device, kernel, pins
from fastsocket.steer.compile import compile_rule
from fastsocket.steer.cpus import online_cpus
from fastsocket.steer.library import find_rule
from fastsocket.steer.probe import generic_redirect_works
from fastsocket.steer.program import write_table
from tests.netns.steer_tools import PEER, Traffic, arrive, ip, rule, total

pytestmark = pytest.mark.netns


def test_every_packet_goes_to_the_cpu_of_the_rule(veth: str) -> None:
    cpus = online_cpus()
    ip("netns", "exec", PEER, "ethtool", "-K", "fs1", "tx", "off")
    for index, cpu in enumerate(cpus[:2]):
        source = f"def rule(pkt, cpus):\n return {index} if pkt.proto == UDP else PASS\n"
        assert device.attach(rule(source), veth, cpus).note.mode == "native"
        assert Traffic(200).received() == (200, {cpu})
        # One finished checksum in 65,536 looks unfinished.
        assert total("redirected", "here") >= 198


def test_unfinished_checksums_are_left_alone_and_counted(veth: str) -> None:
    note = device.attach(rule("def rule(pkt, cpus):\n return pkt.hash % cpus\n"), veth,
                         online_cpus()).note  # fmt: skip
    assert "tx off" in note.why
    for target in ("10.9.0.1", "fd09::1"):
        assert arrive(100, 50, target)
    assert total("unfinished") == 200


def test_exchange_under_load_loses_nothing_and_keeps_tables(veth: str) -> None:
    ip("netns", "exec", PEER, "ethtool", "-K", "fs1", "tx", "off")
    text = "SEEN = table(size=64)\ndef rule(pkt, cpus):\n SEEN.set(pkt.proto, {0})\n return {1}\n"
    device.attach(rule(text.format(1, "PASS")), veth, online_cpus())
    table, kept = device.open_table(veth, "SEEN")
    write_table(table, kept, 12345, 7)
    kept.close()
    traffic, swaps = Traffic(2000, pause=0.001), 0
    while traffic.sender.poll() is None:
        device.attach(rule(text.format(swaps, f"{swaps} % cpus")), veth, online_cpus())
        swaps += 1
    assert traffic.received()[0] == 2000
    assert swaps >= 5
    table, kept = device.open_table(veth, "SEEN")
    assert kept.lookup(table.key_bytes(12345)) == struct.pack("=i", 7)
    kept.close()


def bpf_mounts() -> list[str]:
    return [line for line in Path("/proc/mounts").read_text().splitlines() if " bpf " in line]


def test_detach_leaves_nothing(veth: str) -> None:
    before = bpf_mounts()
    device.attach(compile_rule(find_rule("hash"), len(online_cpus())), veth, online_cpus())
    assert kernel.attached_program(device.device_index(veth))[0]
    device.detach(veth)
    assert kernel.attached_program(device.device_index(veth)) == (0, "")
    assert pins.all_places() == []
    assert not pins.ROOT.exists()
    assert bpf_mounts() == before
    assert arrive(3)
    with pytest.raises(ConflictError, match="has no rule"):
        device.detach(veth)


def test_the_bpf_file_system_comes_and_goes_with_the_rules(veth: str) -> None:
    """Also where it is missing; in mounts that end with the command no rule would last."""
    code = (
        "import sys; from fastsocket.steer import bpffs, device, pins\n"
        "from fastsocket.steer.compile import compile_rule\n"
        "from fastsocket.steer.library import find_rule\n"
        "bpffs.is_private = lambda: sys.argv[2] == 'private'\n"
        "device.attach(compile_rule(find_rule('hash'), 1), sys.argv[1], [0])\n"
        "assert bpffs.PLACE.is_mount() and pins.ROOT.exists()\n"
        "device.detach(sys.argv[1])\n"
        "assert not bpffs.PLACE.is_mount()\n"
    )
    hide = ["unshare", "-m", "sh", "-c", 'umount /sys/fs/bpf 2>/dev/null; exec "$@"', "sh"]
    for mounts in "lasting", "private":
        done = subprocess.run(
            [*hide, sys.executable, "-c", code, veth, mounts],
            stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode != 0) == (mounts == "private"), done.stderr
    assert "nsenter --net=" in done.stderr


def test_generic_mode_only_where_it_delivers(veth: str) -> None:
    ip("link", "set", "lo", "up")
    compiled = rule("def rule(pkt, cpus):\n return 0\n")
    if generic_redirect_works():
        note = device.attach(compiled, "lo", online_cpus()).note
        assert note.mode == "generic"
        assert "native XDP" in note.why
    else:
        with pytest.raises(MissingFeatureError, match="damages the packets"):
            device.attach(compiled, "lo", online_cpus())
        assert kernel.attached_program(device.device_index("lo")) == (0, "")
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), 2).close()


def test_a_mode_is_not_exchanged(veth: str) -> None:
    compiled = rule("def rule(pkt, cpus):\n return 0\n")
    device.attach(compiled, veth, online_cpus(), "native")
    with pytest.raises(ConflictError, match="in native mode"):
        device.attach(compiled, veth, online_cpus(), "generic")
    assert arrive(3)


def test_a_foreign_program_is_refused_and_left_alone(veth: str) -> None:
    compiled = rule("def rule(pkt, cpus):\n return PASS\n")
    foreign = BpfObject(compiled.object)
    for name in ("cpus", "batch"):
        foreign.resize_map(name, possible_cpus())
    foreign.load()
    index = device.device_index(veth)
    link = kernel.xdp_link(foreign.program("steer").fd, index, 0)
    try:
        before = kernel.attached_program(index)
        for refused in (lambda: device.attach(compiled, veth, online_cpus()),
                        lambda: device.detach(veth)):  # fmt: skip
            with pytest.raises(ConflictError, match="not ours"):
                refused()
        assert kernel.attached_program(index) == before
    finally:
        os.close(link)
    foreign.close()
    assert pins.all_places() == []


def test_jumbo_fragments_and_ipv6_get_through(veth: str) -> None:
    for inside, name in ((False, "fs.0"), (True, "fs1")):
        where = ("-n", PEER) if inside else ()
        ip(*where, "link", "set", name, "mtu", "9000")
    ip("netns", "exec", PEER, "ethtool", "-K", "fs1", "tx", "off")
    device.attach(rule("def rule(pkt, cpus):\n return pkt.hash % cpus\n"), veth, online_cpus())
    for target in ("10.9.0.1", "fd09::1"):
        for size in (10, 8900, 20000):
            assert arrive(20, size, target), (target, size)


def test_command_line_from_attach_to_detach(veth: str) -> None:
    run = CliRunner()

    def call(*words: str) -> dict[str, Any]:
        result = run.invoke(command, [*words, "--json"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads(result.output)
        return found

    tried = call("test", "hash", "--flows", "1000")
    assert tried["packets"] == sum(tried["cpus"].values()) == 1000
    assert min(tried["cpus"].values()) > 1000 / len(online_cpus()) * 0.8
    assert call("attach", "tenant", "-i", veth, "--dry-run")["attached"] is False
    assert call("status") == {"devices": []}
    assert call("attach", "tenant", "-i", veth)["mode"] == "native"
    assert call("table", "-i", veth, "TENANTS", "10.9.0.0/24", "1")["value"] == 1
    ip("netns", "exec", PEER, "ethtool", "-K", "fs1", "tx", "off")
    assert arrive(50)
    assert total("redirected", "here") >= 50
    assert call("table", "-i", veth, "TENANTS", "10.9.0.0/24", "--delete")["value"] is None
    with pytest.raises(UsageError, match="no table"):
        call("table", "-i", veth, "NOTHING", "1")
    assert call("detach", "-i", veth)["rule"] == "tenant"
    with pytest.raises(UsageError, match="there is no device"):
        call("attach", "tenant", "-i", "nowhere")


def test_rfd_tells_active_from_passive_by_the_listener(veth: str) -> None:
    ip("netns", "exec", PEER, "ethtool", "-K", "fs1", "tx", "off")
    device.attach(compile_rule(find_rule("rfd"), len(online_cpus())), veth, online_cpus())
    table, kept = device.open_table(veth, "SLICES")
    for block in range(1024):
        write_table(table, kept, block, 1)
    kept.close()
    with socket.create_server(("10.9.0.1", 8080)):
        before = total("rule_pass")
        client = "import socket;socket.create_connection(('10.9.0.1',8080),5)"
        subprocess.run(["ip", "netns", "exec", PEER, "python3", "-c", client], check=True)
        assert total("rule_pass") - before >= 2
        assert total("redirected", "here") == 0
    server = subprocess.Popen(
        ["ip", "netns", "exec", PEER, "python3", "-c",
         "import socket;s=socket.create_server(('10.9.0.2',9090));print(flush=True);s.accept()"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert server.stdout is not None
    server.stdout.readline()
    with socket.create_connection(("10.9.0.2", 9090), 5):
        server.wait(5)
    assert total("redirected", "here") >= 1


def test_receive_cpu_follows_the_reader(veth: str) -> None:
    cpus = online_cpus()
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    ip("netns", "exec", PEER, "ethtool", "-K", "fs1", "tx", "off")
    device.attach(compile_rule(find_rule("receive_cpu"), len(cpus)), veth, cpus)
    talk = (
        "import socket,time;s=socket.create_connection(('10.9.0.1',8081),5)\n"
        "while True: s.send(b'x'*100); time.sleep(0.001)"
    )
    with socket.create_server(("10.9.0.1", 8081)) as server:
        talker = subprocess.Popen(["ip", "netns", "exec", PEER, sys.executable, "-c", talk])
        before = os.sched_getaffinity(0)
        try:
            connection, _ = server.accept()
            for cpu in (cpus[0], cpus[1], cpus[0], cpus[1]):
                os.sched_setaffinity(0, {cpu})
                connection.recv(100, socket.MSG_WAITALL)
                time.sleep(0.01)
                connection.recv(1 << 20)  # what came before or within the 10 ms
                arrived = []
                for _ in range(300):
                    connection.recv(100, socket.MSG_WAITALL)
                    arrived.append(connection.getsockopt(socket.SOL_SOCKET, 49))
                assert arrived.count(cpu) >= 297
        finally:
            os.sched_setaffinity(0, before)
            talker.terminate()
            talker.wait(5)
            connection.close()
    device.detach(veth)
    links = subprocess.run(["bpftool", "link"], capture_output=True, text=True, check=True).stdout
    assert "tcp_rcv_space_adjust" not in links
