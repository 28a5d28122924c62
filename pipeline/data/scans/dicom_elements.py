# SPDX-License-Identifier: Apache-2.0
"""The elements of a DICOM file walked up to its pixels, to compare how many there are with what the header promises.

GDCM fills up what is missing and drops what is too much: a header with a wrong number of rows would give an image of
another shape without a word. Source: DICOM PS3.5, section 7 (elements, value lengths, sequences) and annex A.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import InputError

_PREAMBLE_BYTES = 132
_IMPLICIT, _EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
_BIG_ENDIAN, _DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
_LONG_KINDS = frozenset(
    {*(b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ"), *(b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")}
)
_SEQUENCES = (b"SQ", b"UN", b"")
_TRANSFER_SYNTAX, _PIXELS = (0x0002, 0x0010), (0x7FE0, 0x0010)
_SAMPLES, _FRAMES = (0x0028, 0x0002), (0x0028, 0x0008)
_ROWS, _COLUMNS, _BITS = (0x0028, 0x0010), (0x0028, 0x0011), (0x0028, 0x0100)
_NUMBERS = {_SAMPLES, _ROWS, _COLUMNS, _BITS}
_ITEM, _ITEM_END, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
_UNDEFINED = 0xFFFFFFFF
_MOST_DEPTH = 16

Tag = tuple[int, int]


class _DamagedError(Exception):
    """The elements cannot be followed."""


@dataclass(frozen=True)
class PixelSize:
    """What a file says of its pixels: columns, rows, and the bytes that it promises and has (None: compressed)."""

    columns: int
    rows: int
    promised: int
    stored: int | None


def pixel_size(path: Path) -> PixelSize:
    """Return what a DICOM file says of its pixels; `InputError` where its elements cannot be followed to them.

    Files whose elements are deflated as a whole are refused too: nothing bounds what they grow to.
    """
    try:
        with open(path, "rb") as file:
            file.seek(_PREAMBLE_BYTES)
            syntax = _transfer_syntax(file)
            if syntax == _DEFLATED:
                raise InputError(f"{path} is deflated as a whole; convert it to NIfTI (dcm2niix does)")
            values, stored = _Elements(file, syntax, path.stat().st_size).up_to_pixels()
        missing = {_ROWS, _COLUMNS, _BITS} - values.keys()
        if missing:
            raise _DamagedError("no rows, columns or bits")
    except (_DamagedError, struct.error) as error:
        raise InputError(f"{path}: damaged DICOM elements ({error}); convert it to NIfTI (dcm2niix does)") from error
    bits = math.prod(values.get(tag, 1) for tag in (_ROWS, _COLUMNS, _BITS, _SAMPLES))
    return PixelSize(values[_COLUMNS], values[_ROWS], math.ceil(bits / 8), stored)


def _transfer_syntax(file: BinaryIO) -> str:
    """Read the group of elements about the file, which is always explicit; returns the syntax of the others."""
    elements = _Elements(file, _EXPLICIT, 0)
    syntax = _IMPLICIT
    while True:
        group = file.read(2)
        file.seek(-len(group), 1)
        if group != b"\x02\x00":
            return syntax
        tag, _, length = elements.head()
        value = file.read(length) if length < 1 << 16 else b""
        if len(value) < length:
            raise _DamagedError("no end of the group about the file")
        if tag == _TRANSFER_SYNTAX:
            syntax = value.rstrip(b"\0 ").decode("ascii", "replace")


class _Elements:
    def __init__(self, file: BinaryIO, syntax: str, end: int) -> None:
        self.file, self.end = file, end
        self.explicit = syntax != _IMPLICIT
        self.order = ">" if syntax == _BIG_ENDIAN else "<"

    def up_to_pixels(self) -> tuple[dict[Tag, int], int | None]:
        """Return the numbers of interest, and the length of the pixels, None where they are compressed."""
        values: dict[Tag, int] = {}
        while True:
            tag, kind, length = self.head()
            if tag == _PIXELS:
                if length != _UNDEFINED:
                    self._skip(length)
                return values, None if length == _UNDEFINED else length
            if tag in _NUMBERS and tag not in values:
                if length != 2:
                    raise _DamagedError(f"{tag[0]:04x},{tag[1]:04x} of {length} bytes")
                values[tag] = struct.unpack(f"{self.order}H", self.file.read(2))[0]
            else:
                self._pass_by(kind, length, self.explicit, 0)

    def head(self) -> tuple[Tag, bytes, int]:
        """Read tag, kind (empty where it is implicit) and length of the value of the next element."""
        return self._head(self.explicit)

    def _head(self, explicit: bool) -> tuple[Tag, bytes, int]:
        raw = self.file.read(8)
        tag = struct.unpack(f"{self.order}HH", raw[:4])
        if tag[0] == 0xFFFE or not explicit:
            return tag, b"", struct.unpack(f"{self.order}I", raw[4:])[0]
        kind = raw[4:6]
        if not (kind.isalpha() and kind.isupper()):
            raise _DamagedError(f"{tag[0]:04x},{tag[1]:04x} of the unknown kind {kind!r}")
        if kind in _LONG_KINDS:
            return tag, kind, struct.unpack(f"{self.order}I", self.file.read(4))[0]
        return tag, kind, struct.unpack(f"{self.order}H", raw[6:])[0]

    def _pass_by(self, kind: bytes, length: int, explicit: bool, depth: int) -> None:
        """Go behind a value; those of undefined length are sequences, walked item by item."""
        if length != _UNDEFINED:
            self._skip(length)
            return
        if kind not in _SEQUENCES or depth > _MOST_DEPTH:
            raise _DamagedError("a value without length")
        explicit = explicit and kind != b"UN"  # PS3.5, 6.2.2: sequences of unknown kind are implicit
        while True:
            tag, _, length = self._head(explicit)
            if tag == _SEQUENCE_END:
                return
            if tag != _ITEM:
                raise _DamagedError("a sequence without items")
            if length != _UNDEFINED:
                self._skip(length)
                continue
            while True:
                tag, inner, size = self._head(explicit)
                if tag == _ITEM_END:
                    break
                self._pass_by(inner, size, explicit, depth + 1)

    def _skip(self, length: int) -> None:
        place = self.file.seek(length, 1)
        if place > self.end:
            raise _DamagedError("a value goes on behind the end of the file")
