# SPDX-License-Identifier: GPL-2.0-or-later
"""Recordings: samples in a file, small enough for days and safe against being cut short.

The file is a magic line, a header, and blocks. Header and blocks are each a length and a CRC-32
(both 32 bits, little endian) followed by zlib-compressed MessagePack. A block holds many samples:
neighbours are alike, so together they compress far better than alone, and a crash loses at most
the last block.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from fastsocket.errors import ConflictError, UsageError
from fastsocket.observe.sample import Sample

__all__ = ["MAGIC", "Header", "Recorder", "Recording", "is_recording"]

MAGIC = b"fastsocket recording 1\n"
_FAMILY = b"fastsocket recording "
_FRAME = struct.Struct("<II")
_LONGEST_BLOCK = 64 << 20
BLOCK_SAMPLES = 60


class Header(msgspec.Struct, frozen=True):
    """What the recording belongs to; `interval` is the seconds between samples."""

    host: str
    kernel: str
    model: str
    interval: float


class Recorder:
    """Writes samples to a new file.

    Args:
        path: The file; it must not exist.
        header: Whose samples they are.

    Raises:
        ConflictError: The file exists.
        UsageError: It cannot be created.
    """

    def __init__(self, path: Path, header: Header) -> None:
        try:
            self._file: IO[bytes] = path.open("xb")
        except FileExistsError as error:
            raise ConflictError(
                f"{path} exists", "a recording never overwrites a file", "choose another name"
            ) from error
        except OSError as error:
            raise UsageError(f"cannot record to {path}", error.strerror or "") from error
        self._block: list[Sample] = []
        self.samples = 0
        self._file.write(MAGIC)
        self._write(header)

    def add(self, sample: Sample) -> None:
        """Add a sample; it is on its way to the disk when its block is full."""
        self._block.append(sample)
        self.samples += 1
        if len(self._block) == BLOCK_SAMPLES:
            self._write(self._block)
            self._block = []

    def close(self) -> None:
        """Write what is left and close the file."""
        if self._block:
            self._write(self._block)
            self._block = []
        self._file.close()

    def _write(self, content: Header | list[Sample]) -> None:
        data = zlib.compress(msgspec.msgpack.encode(content), 6)
        self._file.write(_FRAME.pack(len(data), zlib.crc32(data)) + data)
        self._file.flush()


def is_recording(path: Path) -> bool:
    """Say whether a file begins as a recording of any version does; False if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(_FAMILY)) == _FAMILY
    except OSError:
        return False


class Recording:
    """Reads a recording; it is also a `Source`, for a live view of what was.

    Args:
        path: The file.

    Attributes:
        header: Whose samples they are.
        cut_short: Set once reading met an unfinished block: the recorder was killed.

    Raises:
        UsageError: It is not a recording of this version, or damaged before its first sample.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.cut_short = path, False
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise UsageError(f"cannot read {path}", error.strerror or "") from error
        if self._file.read(len(MAGIC)) != MAGIC:
            self._file.close()
            raise UsageError(
                f"{path} is not a recording of this version",
                "",
                "recordings are made with 'fastsocket record FILE'",
            )
        frame = self._frame()
        if frame is None:
            self._file.close()
            raise UsageError(f"{path} is cut short", "it ends within its header", "record again")
        self.header = msgspec.msgpack.decode(frame, type=Header)
        self._samples = self._read()

    def __iter__(self) -> Iterator[Sample]:
        """Give every sample in order, each once."""
        return self._samples

    def read(self) -> Sample | None:
        """Return the next sample, or None at the end."""
        return next(self._samples, None)

    def _read(self) -> Iterator[Sample]:
        decoder = msgspec.msgpack.Decoder(list[Sample])
        with self._file:
            while (frame := self._frame()) is not None:
                yield from decoder.decode(frame)

    def _frame(self) -> bytes | None:
        """Return the next frame, unpacked; None at the end, and at a frame that is not whole."""
        head = self._file.read(_FRAME.size)
        if not head:
            return None
        if len(head) == _FRAME.size:
            length, checksum = _FRAME.unpack(head)
            data = self._file.read(min(length, _LONGEST_BLOCK))
            if len(data) == length and zlib.crc32(data) == checksum:
                return zlib.decompress(data)
        self.cut_short = True
        return None
