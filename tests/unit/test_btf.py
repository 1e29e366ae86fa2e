# SPDX-License-Identifier: GPL-2.0-or-later
"""Type information built by hand, and the running kernel's against what bpftool says."""

import json
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from fastsocket.host.btf import Btf, kernel_btf

pytestmark = pytest.mark.unit

STRINGS = b"\0int\0outer\0a\0inner\0b\0cpu_var\0alias\0"


def name(text: str) -> int:
    return STRINGS.index(b"\0" + text.encode() + b"\0") + 1


def entry(label: str, kind: int, vlen: int, last: int, extra: bytes = b"") -> bytes:
    info = kind << 24 | vlen
    return struct.pack("=III", name(label) if label else 0, info, last) + extra


def member(label: str, target: int, bits: int) -> bytes:
    return struct.pack("=III", name(label) if label else 0, target, bits)


def made() -> bytes:
    types = b"".join(
        [
            entry("int", 1, 0, 4, bytes(4)),  # 1
            entry("", 5, 1, 8, member("b", 1, 32)),  # 2: an unnamed union
            entry("inner", 4, 1, 8, member("", 2, 64)),  # 3
            entry("alias", 8, 0, 3),  # 4: typedef of inner
            entry("outer", 4, 2, 24, member("a", 1, 0) + member("inner", 4, 64)),  # 5
            entry("cpu_var", 14, 0, 5, bytes(4)),  # 6
        ]
    )
    head = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(STRINGS))
    return head + types + STRINGS


def test_offsets_through_typedefs_and_unnamed_unions() -> None:
    btf = Btf(made())
    assert btf.offset("outer", "a") == 0
    assert btf.offset("outer", "inner") == 8
    assert btf.offset("outer", "inner.b") == 8 + 8 + 4


def test_names() -> None:
    btf = Btf(made())
    assert btf.variable("cpu_var") == 6
    assert btf.variable("outer") is None
    assert btf.has_struct("inner")
    assert not btf.has_struct("alias")


@pytest.mark.parametrize("path", ["c", "a.b", "inner.b.a", "inner.x"])
def test_unknown_member(path: str) -> None:
    with pytest.raises(KeyError, match="struct outer has no"):
        Btf(made()).offset("outer", path)


@pytest.mark.parametrize("data", [b"", b"\x7fELF" + bytes(40)])
def test_not_btf(data: bytes) -> None:
    with pytest.raises(ValueError, match="not BTF"):
        Btf(data)


@pytest.mark.skipif(
    not Path("/sys/kernel/btf/vmlinux").exists() or shutil.which("bpftool") is None,
    reason="needs a kernel with BTF and bpftool",
)
def test_running_kernel_agrees_with_bpftool() -> None:
    dump = subprocess.run(
        ["bpftool", "-j", "btf", "dump", "file", "/sys/kernel/btf/vmlinux"],
        capture_output=True,
        check=True,
        timeout=60,
    )
    types = json.loads(dump.stdout)["types"]
    wanted = {"task_struct": "files", "inode": "i_sb_list", "sock": "sk_rx_dst"}
    for row in types:
        member_name = wanted.get(row.get("name", "")) if row["kind"] == "STRUCT" else None
        for part in row.get("members", []):
            if part["name"] == member_name:
                bits = part["bits_offset"]
                assert kernel_btf().offset(row["name"], member_name) == bits // 8
                del wanted[row["name"]]
                break
    assert not wanted
