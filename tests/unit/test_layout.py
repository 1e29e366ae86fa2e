# SPDX-License-Identifier: GPL-2.0-or-later
"""The status page means the same in C and in Python, and the library exports what it hooks."""

import ctypes
import re
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fastsocket.app import protocol
from fastsocket.listen import layout
from fastsocket.native import LIBRARIES, library_name, native_file

pytestmark = pytest.mark.unit

NATIVE = Path(__file__).parents[2] / "native"
PRELOAD = NATIVE / "preload"
EPOLL, BOTH = (library_name(lean, fast_epoll=True) for lean in ("off", "auto"))
# Kinds of include/uapi/linux/btf.h that are used here, and the bytes that follow a type's head.
INT, PTR, ARRAY, STRUCT, UNION, ENUM, TYPEDEF = 1, 2, 3, 4, 5, 6, 8
QUALIFIERS = (9, 10, 11)
EXTRA = {1: 4, 3: 12, 14: 4, 17: 4}
PER_MEMBER = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}


class Btf:
    """The types of a BPF object, as its .BTF section holds them."""

    def __init__(self, data: bytes) -> None:
        magic, _, _, head, at, length, strings, _ = struct.unpack_from("=HBBIIIII", data)
        assert magic == 0xEB9F
        self._strings = data[head + strings :]
        self.types: list[tuple[str, int, int, list[tuple[str, int, int]]]] = [("void", 0, 0, [])]
        at, end = head + at, head + at + length
        while at < end:
            name, info, size = struct.unpack_from("=III", data, at)
            kind, count = info >> 24 & 0x1F, info & 0xFFFF
            at += 12
            rows = []
            if kind in (STRUCT, UNION):
                for number in range(count):
                    member, of, offset = struct.unpack_from("=III", data, at + 12 * number)
                    rows.append((self._name(member), of, offset))
            if kind == ENUM:
                for number in range(count):
                    member, value = struct.unpack_from("=Ii", data, at + 8 * number)
                    rows.append((self._name(member), value, 0))
            if kind == ARRAY:
                rows = [("", *struct.unpack_from("=I4xI", data, at))]
            self.types.append((self._name(name), kind, size, rows))
            at += EXTRA.get(kind, 0) + PER_MEMBER.get(kind, 0) * count

    def _name(self, offset: int) -> str:
        return self._strings[offset : self._strings.index(b"\0", offset)].decode()

    def struct(self, name: str) -> tuple[int, dict[str, tuple[int, int]]]:
        """Return a struct's size and its members' offsets and sizes, in bytes."""
        (found,) = (row for row in self.types if row[:2] == (name, STRUCT))
        return found[2], {row[0]: (row[2] // 8, self._size(row[1])) for row in found[3]}

    def enum(self, name: str) -> dict[str, int]:
        (found,) = (row for row in self.types if row[:2] == (name, ENUM))
        return {row[0]: row[1] for row in found[3]}

    def _size(self, number: int) -> int:
        _, kind, size, rows = self.types[number]
        if kind == ARRAY:
            return self._size(rows[0][1]) * rows[0][2]
        if kind == TYPEDEF or kind in QUALIFIERS:
            return self._size(size)
        return 8 if kind == PTR else size


def btf_section(elf: bytes) -> bytes:
    """Return .BTF of a 64-bit ELF file."""
    at, size, count, names = struct.unpack_from("=Q10xHHH", elf, 40)
    rows = [struct.unpack_from("=I20xQQ", elf, at + size * number) for number in range(count)]
    strings = rows[names][1]
    for name, offset, length in rows:
        if elf[strings + name :].split(b"\0", 1)[0] == b".BTF":
            return elf[offset : offset + length]
    raise AssertionError("no .BTF")


@pytest.fixture(scope="module")
def btf() -> Btf:
    return Btf(btf_section(native_file("select.bpf.o").read_bytes()))


@pytest.mark.parametrize(
    ("name", "mirror"),
    [
        ("fs_worker", layout.Worker),
        ("fs_slot", layout.Slot),
        ("fs_lean_means", layout.LeanMeans),
        ("fs_lean", layout.Lean),
        ("fs_listener", layout.Listener),
        ("fs_page", layout.Page),
    ],
)
def test_structs(btf: Btf, name: str, mirror: Any) -> None:
    size, members = btf.struct(name)
    fields = {row[0]: getattr(mirror, row[0]) for row in mirror._fields_}
    assert ctypes.sizeof(mirror) == size
    here = {field: (at.offset, at.size) for field, at in fields.items()}
    # C pads before an aligned member without a name, Python needs one.
    assert {field: at for field, at in here.items() if field in members} == members
    assert all(field.startswith("pad") for field in here.keys() - members.keys())


def constant(name: str, text: str) -> int:
    match = re.search(rf"#define {name} (\w+)", text)
    assert match, name
    return int(match[1].rstrip("ULul"), 0)


def test_constants() -> None:
    text = (NATIVE / "include/page.h").read_text()
    defines = set(re.findall(r"#define FS_(\w+) ", text))
    names = {"PAGE_MAGIC": "MAGIC", "PAGE_VERSION": "VERSION"}
    assert len(defines) > 5
    for define in defines:
        here = getattr(layout, names.get(define, define))
        assert here == constant(f"FS_{define}", text), define


def enum_values(path: str, name: str, prefix: str) -> dict[str, int]:
    """Return an enum's names without their prefix; numbers count up from the last one given."""
    body = re.search(rf"enum {name} \{{(.*?)\}};", (NATIVE / path).read_text(), re.DOTALL)
    assert body
    values, following = {}, 0
    for row in re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL).split(","):
        key, _, value = row.partition("=")
        if key.strip():
            following = int(value) if value else following
            values[key.strip().removeprefix(prefix)] = following
            following += 1
    return values


@pytest.mark.parametrize(
    ("path", "name", "prefix", "mirror"),
    [
        ("include/page.h", "fs_tier", "FS_TIER_", layout.Tier),
        ("include/page.h", "fs_policy", "FS_POLICY_", layout.Policy),
        ("include/page.h", "fs_slot_state", "FS_SLOT_", layout.SlotState),
        ("include/page.h", "fs_means", "FS_MEANS_", layout.Means),
        ("include/page.h", "fs_pinned", "FS_PINNED_", layout.Pinned),
        ("include/page.h", "fs_fast_epoll", "FS_FAST_EPOLL_", layout.FastEpoll),
        ("include/page.h", "fs_contradiction", "FS_", layout.Contradiction),
        ("include/keeper.h", "fs_op", "FS_OP_", protocol.Op),
    ],
)
def test_enums(path: str, name: str, prefix: str, mirror: Any) -> None:
    assert {row.name: row.value for row in mirror} == enum_values(path, name, prefix)


def test_requests() -> None:
    text = (NATIVE / "include/keeper.h").read_text()
    assert constant("FS_KEEPER_MAGIC", text) == protocol.MAGIC
    for name, value in protocol.Join.__members__.items():
        assert constant(f"FS_JOIN_{name}", text) == value
    body = re.search(r"struct fs_request \{(.*?)\};", text, re.DOTALL)
    assert body
    words = re.findall(r"__u32 (\w+);", body[1])
    assert words == ["magic", "op", "listener", "slot", "worker", "flags"]
    request = protocol.Request(protocol.Op.ADD, 1, 2, 3, 4)
    assert request.pack() == struct.pack("=6I", protocol.MAGIC, protocol.Op.ADD, 1, 2, 3, 4)
    assert protocol.Request.unpack(request.pack()) == request
    assert protocol.Request.unpack(request.pack()[1:]) is None
    assert protocol.Request.unpack(bytes(24)) is None


def hooks(library: str) -> set[str]:
    """Return the functions that a library intercepts: the core, that and some others, or all."""
    text = (PRELOAD / "hooks.h").read_text()
    ends = {LIBRARIES["off"]: "#define FS_SHARE_HOOKS", EPOLL: "#define FS_READ_HOOKS"}
    if library in ends:
        text = text.partition(ends[library])[0]
    if library == LIBRARIES["auto"]:
        text = re.sub(r"#define FS_EPOLL_HOOKS.*?\n\n", "", text, flags=re.DOTALL)
    found = set(re.findall(r"HOOK\([\w *]+, (\w+),", text))
    found.discard("name")  # of the comment that says what a row is
    assert len(found) > 20
    return found


def exports() -> set[str]:
    body = re.search(r"global:(.*?)local:", (PRELOAD / "exports.map").read_text(), re.DOTALL)
    assert body
    return set(re.findall(r"(\w+);", body[1]))


def test_exports_are_the_hooks() -> None:
    """Beside them there is only what the keeper calls."""
    extra = exports() - hooks(BOTH)
    assert not hooks(BOTH) - exports()
    assert all(name.startswith("fsocket_") for name in extra), extra


@pytest.mark.parametrize("name", [*LIBRARIES.values(), EPOLL, BOTH])
def test_library_defines_its_exports(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook without a wrapper would be exported by nobody.

    What was loaded stays loaded, and a later test may fork: the library is to do nothing here.
    """
    monkeypatch.setenv("FASTSOCKET_LISTEN_SPAWN", "0")
    library = ctypes.CDLL(str(native_file(name)))
    text = subprocess.run(
        ["readelf", "--wide", "--dyn-syms", native_file(name)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    defined = {
        words[7]
        for words in map(str.split, text.splitlines())
        if len(words) == 8 and words[4] == "GLOBAL" and words[6] != "UND"
    }
    assert defined == hooks(name) | exports() - hooks(BOTH)
    assert all(getattr(library, symbol) for symbol in defined)
