# SPDX-License-Identifier: GPL-2.0-or-later
"""Flow rules in the kernel's layout, irqbalance's socket, the default route, the systemd unit."""

import configparser
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsocket.nic.ethtool import FlowRule, pack_rule, unpack_rule
from fastsocket.nic.irqbalance import ban, find_irqbalance
from fastsocket.nic.verdict import default_interface

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "systemd/fastsocket-nic@.service"
PORT = st.integers(0, 0xFFFF)


@given(st.sampled_from(["tcp4", "tcp6"]), PORT, PORT, st.integers(0, 1000), PORT)
def test_a_rule_survives_packing_and_text(
    flow: str, port: int, mask: int, queue: int, location: int
) -> None:
    rule = FlowRule(flow, port, mask, queue)
    assert unpack_rule(pack_rule(0x32, location, rule)) == rule
    assert FlowRule.parse(str(rule)) == rule


def test_a_rule_has_the_kernel_s_layout(tmp_path: Path) -> None:
    source = tmp_path / "layout.c"
    source.write_text(
        "#include <arpa/inet.h>\n#include <linux/ethtool.h>\n#include <stdio.h>\n"
        "int main(void) { struct ethtool_rxnfc c = { .cmd = ETHTOOL_SRXCLSRLINS,"
        " .flow_type = TCP_V4_FLOW };"
        " c.fs.flow_type = TCP_V4_FLOW; c.fs.h_u.tcp_ip4_spec.pdst = htons(32768);"
        " c.fs.m_u.tcp_ip4_spec.pdst = htons(0xfc00); c.fs.ring_cookie = 5; c.fs.location = 7;"
        " return fwrite(&c, sizeof(c), 1, stdout) != 1; }\n"
    )
    subprocess.run(["cc", "-o", tmp_path / "layout", source], check=True)
    wanted = subprocess.run([tmp_path / "layout"], check=True, capture_output=True).stdout
    assert pack_rule(0x32, 7, FlowRule("tcp4", 32768, 0xFC00, 5)) == wanted


def test_rules_of_others_are_not_read_as_ours() -> None:
    data = bytearray(pack_rule(0x32, 0, FlowRule("tcp4", 80, 0xFFFF, 1)))
    data[16 + 76] = 0xFF  # a mask of the source address
    assert unpack_rule(bytes(data)) is None
    with pytest.raises(ValueError, match="no flow rule"):
        FlowRule.parse("foreign")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[tuple[Path, list[str]]]:
    """A process tree with an irqbalance whose socket answers as the real one's does."""
    process = tmp_path / "proc/811"
    process.mkdir(parents=True)
    (process / "comm").write_text("irqbalance\n")
    (tmp_path / "run/irqbalance").mkdir(parents=True)
    path = tmp_path / "run/irqbalance/irqbalance811.sock"
    commands: list[str] = []
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(path))
    server.listen()

    def serve() -> None:
        banned = "9"
        while True:
            try:
                link, _ = server.accept()
            except OSError:
                return
            with link:
                command = link.recv(4096).decode()
                commands.append(command)
                if command.startswith("settings ban irqs "):
                    banned = command.removeprefix("settings ban irqs ").replace("NONE", "")
                if command == "setup":
                    irqs = "".join(f"IRQ {irq} LOAD 0 DIFF 0 CLASS 5 " for irq in banned.split())
                    link.sendall(f"SLEEP 10 {irqs}BANNED 00000000".encode())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield tmp_path, commands
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


def test_irqbalance_is_asked_and_told(daemon: tuple[Path, list[str]]) -> None:
    root, commands = daemon
    found = find_irqbalance(root)
    assert (found.pid, found.banned) == (811, (9,))
    ban(found.socket, {34, 9, 35})
    assert commands[-1] == "settings ban irqs 9 34 35"
    assert find_irqbalance(root).banned == (9, 34, 35)
    ban(found.socket, ())
    assert find_irqbalance(root).banned == ()


def test_irqbalance_without_a_socket_is_still_seen(tmp_path: Path) -> None:
    (tmp_path / "proc/5").mkdir(parents=True)
    (tmp_path / "proc/5/comm").write_text("irqbalance\n")
    assert find_irqbalance(tmp_path).pid == 5 and find_irqbalance(tmp_path).socket == ""


def test_the_default_route_of_least_metric_names_the_card(tmp_path: Path) -> None:
    assert default_interface(tmp_path) == ""
    net = tmp_path / "proc/net"
    net.mkdir(parents=True)
    zeros = "0" * 32
    (net / "ipv6_route").write_text(
        f"fe80{zeros[4:]} 40 {zeros} 00 {zeros} 00000100 00000001 00000000 00000001     eth9\n"
        f"{zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200       lo\n"
        f"{zeros} 00 {zeros} 00 fe80{zeros[4:]} 00000400 00000001 00000000 00000003     eth6\n"
    )
    assert default_interface(tmp_path) == "eth6"
    (net / "route").write_text(
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        "wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n"
        "eth0\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
        "eth1\t00000000\t0100A8C0\t0002\t0\t0\t50\t00000000\t0\t0\t0\n"
        "eth2\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    )
    assert default_interface(tmp_path) == "eth0"


def test_the_unit_calls_commands_that_exist() -> None:
    from fastsocket.cli.nic import command

    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    device = "sys-subsystem-net-devices-%i.device"
    assert parser["Unit"]["BindsTo"] == parser["Install"]["WantedBy"] == device
    for key, verb in (("ExecStart", "apply"), ("ExecStop", "undo")):
        words = parser["Service"][key].split()
        assert words[1:3] == ["nic", verb]
        known = {option for item in command.commands[verb].params for option in item.opts}
        assert {word for word in words if word.startswith("-")} <= known


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is missing")
    unit = tmp_path / "fastsocket-nic@eth0.service"
    text = UNIT.read_text().replace("/usr/bin/fastsocket", "/bin/true")
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
    )
    assert "fastsocket-nic" not in done.stderr, done.stderr
