# SPDX-License-Identifier: GPL-2.0-or-later
"""Attaches rules to network devices, exchanges them under load, and removes them."""

import ctypes
import errno
import fcntl
import os
import shutil
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from fastsocket.bpf.libbpf import BpfError, Map
from fastsocket.errors import ConflictError, MissingFeatureError, UsageError
from fastsocket.host.cpulist import format_list
from fastsocket.host.slices import BLOCKS
from fastsocket.steer import kernel, pins
from fastsocket.steer.compile import CompiledRule
from fastsocket.steer.feed import pin_feed
from fastsocket.steer.language import Table, TableKind
from fastsocket.steer.layout import Exit, Queue
from fastsocket.steer.library import is_built_in
from fastsocket.steer.pins import Note
from fastsocket.steer.probe import generic_redirect_works
from fastsocket.steer.program import SteerProgram, per_cpu_sum, write_table

__all__ = [
    "Attachment",
    "attach",
    "check_free",
    "detach",
    "device_index",
    "driver_of",
    "fill_slices",
    "open_table",
    "status",
]

# The dispatcher passes such packets (STEER_UNFINISHED): redirected, they would count as damaged.
_VETH = (
    "packets whose checksum the veth peer leaves to hardware are not steered: "
    "run 'ethtool -K PEER tx off'"
)
_MODES = {"native": kernel.XDP_DRIVER, "generic": kernel.XDP_GENERIC}


@dataclass(frozen=True)
class Attachment:
    """A rule on a device, with what it did so far.

    Attributes:
        note: What it is.
        exits: Packets by way out.
        counters: The rule's counters.
        prompt: CPUs that packets interrupt for now, as they waited too long there.
    """

    note: Note
    exits: dict[str, int] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    prompt: tuple[int, ...] = ()


def device_index(device: str) -> int:
    """Return the index of a network device.

    Raises:
        UsageError: There is none of this name.
    """
    try:
        return socket.if_nametoindex(device)
    except OSError:
        names = ", ".join(name for _, name in socket.if_nameindex())
        raise UsageError(f"there is no device {device}", "", f"choose from {names}") from None


def driver_of(device: str) -> str:
    """Return the name of a device's driver, or "" where it names none (ETHTOOL_GDRVINFO).

    Raises:
        OSError: There is no such device.
    """
    info = ctypes.create_string_buffer(struct.pack("=I", 3), 196)  # struct ethtool_drvinfo
    request = struct.pack("16sP", device.encode(), ctypes.addressof(info))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        try:
            fcntl.ioctl(handle, 0x8946, request)  # SIOCETHTOOL
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return ""
            raise
    return info.raw[4:36].rstrip(b"\0").decode(errors="replace")


def check_free(device: str) -> None:
    """Check that `device` has no XDP program but ours.

    Raises:
        ConflictError: It has.
        UsageError: There is no such device.
    """
    number, mode = kernel.attached_program(device_index(device))
    if number and number != _own_program(pins.place_of(device))[0]:
        raise ConflictError(
            f"{device} has the {mode} XDP program {kernel.program_name(number)!r} (id {number})",
            "it is not ours, and only one fits",
            f"remove it ('ip link set dev {device} xdp off'), or choose another device",
        )


def attach(
    compiled: CompiledRule, device: str, cpus: Sequence[int], mode: str | None = None
) -> Attachment:
    """Put a rule on a device; an earlier rule of ours is exchanged between two packets.

    Tables that the earlier rule has too, of the same name, kind and size, keep their entries.

    Args:
        compiled: The rule, compiled for ``len(cpus)`` CPUs.
        device: Name of the device.
        cpus: The CPU set.
        mode: ``native`` or ``generic``; None tries them in this order.

    Raises:
        ConflictError: The device has an XDP program that is not ours, or ours in another mode.
        MissingFeatureError: The device or the kernel cannot do it, or privileges are missing.
        UsageError: There is no such device.
    """
    index = device_index(device)
    place = pins.place_of(device)
    with pins.locked(), ExitStack() as stack:
        check_free(device)
        reuse = _kept_tables(compiled, place, stack)
        program = stack.enter_context(
            SteerProgram(compiled, cpus, reuse=reuse, veth=driver_of(device) == "veth")
        )
        aside = pins.build(program, place)
        try:
            lacks = _shortcomings(program, aside)
            if _own_program(place)[1] == index:
                note = _exchange(program, device, place, aside, mode, lacks)
            else:
                note = _link(program, device, index, aside, mode, lacks)
            pins.swap(aside, place)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    return Attachment(note)


def detach(device: str) -> Note:
    """Remove our rule from a device; packets go on as without it.

    Raises:
        ConflictError: There is none.
        MissingFeatureError: Privileges are missing.
    """
    place = pins.place_of(device)
    with pins.locked():
        if not place.exists():
            check_free(device)
            raise ConflictError(f"{device} has no rule", "", "see 'fastsocket steer status'")
        note = Note.read(place)
        if (place / "link").exists():
            link = kernel.open_pin(place / "link")
            try:
                if kernel.link_program(link)[1]:  # else its device is gone
                    kernel.detach_link(link)
            finally:
                os.close(link)
        shutil.rmtree(place)
        return note


def status() -> list[Attachment]:
    """Return the rules on the devices of this network namespace."""
    return [_attachment(place) for place in pins.all_places()]


def open_table(device: str, name: str) -> tuple[Table, Map]:
    """Open a table of the rule on `device`; close the map after use.

    Raises:
        ConflictError: The device has no rule.
        UsageError: The rule has no such table.
    """
    place = pins.place_of(device)
    if not place.exists():
        raise ConflictError(f"{device} has no rule", "", "see 'fastsocket steer status'")
    tables = {t.name: t for t in Note.read(place).tables if t.kind != TableKind.COUNTER}
    if name not in tables:
        known = ", ".join(tables) or "none"
        raise UsageError(f"the rule on {device} has no table {name}", "", f"it has {known}")
    return tables[name], pins.open_map(place, tables[name])


def fill_slices(device: str, entries: Mapping[int, int]) -> None:
    """Tell the rule rfd on `device` which block of ports belongs to which position in its set.

    Args:
        device: Name of the device.
        entries: Block to position plus 1; other blocks belong to none.

    Raises:
        ConflictError: The device has no rule.
        UsageError: It has another.
    """
    table, kept = open_table(device, "SLICES")
    for block in range(BLOCKS):
        write_table(table, kept, block, entries.get(block, 0))
    kept.close()


def _attachment(place: Path) -> Attachment:
    note = Note.read(place)
    exits = pins.open_map(place, own="exits")
    counted = {way.label: per_cpu_sum(exits, int(way)) for way in Exit}
    exits.close()
    counters = {}
    for table in note.tables:
        if table.kind == TableKind.COUNTER:
            kept = pins.open_map(place, table)
            counters[table.name] = per_cpu_sum(kept, table.slot)
            kept.close()
    return Attachment(note, counted, counters, _prompt(place, note))


def _prompt(place: Path, note: Note) -> tuple[int, ...]:
    if not (place / "queues").exists():  # attached by a version that had none
        return ()
    queues = pins.open_map(place, own="queues")
    try:
        found = {cpu: queues.lookup(struct.pack("=I", cpu)) for cpu in note.cpus}
    finally:
        queues.close()
    now = time.monotonic_ns()
    return tuple(
        cpu
        for cpu, raw in found.items()
        if raw and (queue := Queue.from_buffer_copy(raw)).prompt and queue.until > now
    )


def _own_program(place: Path) -> tuple[int, int]:
    """Return the ids of the program and device that the link at `place` joins; 0 if none."""
    if not (place / "link").exists():
        return 0, 0
    link = kernel.open_pin(place / "link")
    try:
        return kernel.link_program(link)
    finally:
        os.close(link)


def _kept_tables(compiled: CompiledRule, place: Path, stack: ExitStack) -> dict[str, int]:
    """Return descriptors of the tables at `place` that the new rule has too."""
    if not place.exists():
        return {}
    kept = {}
    for old in Note.read(place).tables:
        new = compiled.rule.tables.get(old.name)
        if old.kind == TableKind.COUNTER or new is None:
            continue
        if (old.kind, old.size, old.lru) == (new.kind, new.size, new.lru):
            opened = pins.open_map(place, old)
            stack.callback(opened.close)
            kept[old.name] = opened.fd
    return kept


def _exchange(
    program: SteerProgram, device: str, place: Path, aside: Path, mode: str | None, lacks: str
) -> Note:
    """Let the link at `place` run `program` from the next packet on."""
    old = Note.read(place)
    if mode not in (None, old.mode):
        raise ConflictError(
            f"{device} has the rule {old.rule} in {old.mode} mode", "a mode cannot be exchanged",
            f"run 'fastsocket steer detach -i {device}' first",
        )  # fmt: skip
    note = _note(program, device, old.mode, old.why, lacks)
    note.write(aside)
    link = kernel.open_pin(place / "link")
    try:
        kernel.update_link(link, program.program.fd)
        kernel.pin(link, aside / "link")
    finally:
        os.close(link)
    return note


def _shortcomings(program: SteerProgram, aside: Path) -> str:
    """Feed `program`, and return what is less than it could be on this kernel; or nothing.

    Raises:
        BpfError: The rule receive_cpu is nothing without its feed.
    """
    reasons = [] if program.frags else ["this kernel's XDP handles no packets of several buffers"]
    if program.prompt:
        reasons.append(
            f"packets interrupt CPU {format_list(program.prompt)}: "
            "the threads there could not be found, or may not be scheduled"
        )
    try:
        pin_feed(program, aside)
    except BpfError as error:
        if is_built_in(program.rule, "receive_cpu"):
            raise
        reasons.append(f"readers count as computing: {os.strerror(error.errno).lower()}")
    return "; ".join(reasons)


def _link(
    program: SteerProgram, device: str, index: int, aside: Path, mode: str | None, lacks: str
) -> Note:
    """Attach `program` by a new link."""
    reasons: list[str] = []
    wanted = (mode,) if mode else tuple(_MODES)
    for name in wanted:
        if name == "generic" and not generic_redirect_works():
            reasons.append("generic XDP: this kernel damages the packets that it redirects")
            continue
        try:
            link = kernel.xdp_link(program.program.fd, index, _MODES[name])
        except BpfError as error:
            if error.errno in (errno.EBUSY, errno.EEXIST):
                raise ConflictError(
                    f"{device} has another XDP program", "only one fits", "remove it first"
                ) from error
            if error.errno == errno.EPERM:
                raise
            reasons.append(f"{name} XDP: {os.strerror(error.errno).lower()}")
            continue
        if name == "native" and driver_of(device) == "veth":
            reasons.append(_VETH)
        try:
            note = _note(program, device, name, "; ".join(reasons), lacks)
            note.write(aside)
            kernel.pin(link, aside / "link")
        finally:
            os.close(link)
        return note
    raise MissingFeatureError(
        f"{device} takes no rule", "; ".join(reasons), "choose another device or mode"
    )


def _note(program: SteerProgram, device: str, mode: str, why: str, lacks: str) -> Note:
    tables = tuple(program.rule.tables.values())
    return Note(device, program.rule.name, mode, why, program.cpus, tables, lacks)
