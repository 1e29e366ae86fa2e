# SPDX-License-Identifier: GPL-2.0-or-later
"""What people give to `fastsocket steer` besides rules: CPU sets and captures."""

import struct
from pathlib import Path

import pytest

from fastsocket.errors import UsageError
from fastsocket.steer.cpus import cpu_set, online_cpus, parse_cpus
from fastsocket.steer.frames import generated_flows, read_pcap

pytestmark = pytest.mark.unit


def test_a_set_of_cpus_keeps_its_order() -> None:
    assert parse_cpus("8,0-2, 5") == (8, 0, 1, 2, 5)
    assert cpu_set(None) == online_cpus()


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "2,2", "3-1", "0-1,1"])
def test_what_is_no_set_of_cpus(text: str) -> None:
    with pytest.raises(UsageError, match="no list of CPUs"):
        parse_cpus(text)


def test_a_cpu_that_is_absent_is_named() -> None:
    with pytest.raises(UsageError, match=r"CPU 1022 cannot take packets") as caught:
        cpu_set("0,1022")
    assert "choose from" in caught.value.todo


def capture(frames: list[bytes], order: str = "<", link: int = 1) -> bytes:
    magic = {"<": b"\xd4\xc3\xb2\xa1", ">": b"\xa1\xb2\xc3\xd4"}[order]
    head = magic + struct.pack(f"{order}HHIIII", 2, 4, 0, 0, 65535, link)
    return head + b"".join(
        struct.pack(f"{order}IIII", 0, 0, len(frame), len(frame)) + frame for frame in frames
    )


@pytest.mark.parametrize("order", ["<", ">"])
def test_frames_of_a_capture(order: str, tmp_path: Path) -> None:
    frames, file = list(generated_flows(5)), tmp_path / "f.pcap"
    file.write_bytes(capture([*frames, b"short"], order))
    assert list(read_pcap(file)) == frames


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no pcap file"),
        (b"\x0a\x0d\x0d\x0a" + bytes(60), "no pcap file"),
        (capture([], link=101), "link type is 101"),
        (capture([bytes(60)])[:-1], "a frame of 60 bytes"),
        (capture([]) + bytes(7), "ends within a header"),
        (capture([]) + b"\xff" * 16, "is damaged"),
    ],
)
def test_a_bad_capture_is_refused(data: bytes, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "f.pcap"
    file.write_bytes(data)
    with pytest.raises(UsageError) as caught:
        list(read_pcap(file))
    assert reason in str(caught.value)
