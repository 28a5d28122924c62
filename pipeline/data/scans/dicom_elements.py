# SPDX-License-Identifier: Apache-2.0
"""The size of a DICOM file's pixels by its header and in fact, read by pydicom up to the pixels.

GDCM fills up missing pixels and drops surplus ones: a header with a wrong number of rows would give an image of another
shape without a message. GDCM also mixes up elements that concern the display with elements that concern the values.
This module finds those that the values need.
"""

from __future__ import annotations

import math
import mmap
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import FileDataset
from pydicom.filereader import data_element_generator, read_file_meta_info, read_partial
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from pipeline.errors import InputError

_DEFLATED = (DeflatedExplicitVRLittleEndian, "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205")  # the others: JPIP
_PIXELS = 0x7FE00010
_ROWS, _COLUMNS, _BITS, _SAMPLES = _NUMBERS = [0x00280010, 0x00280011, 0x00280100, 0x00280002]
_PHOTOMETRIC, _BITS_STORED, _HIGH_BIT = 0x00280004, 0x00280101, 0x00280102
_SLOPE, _INTERCEPT, _LOOKUP_TABLE = 0x00281053, 0x00281052, 0x00283000
_VALUES = [_PHOTOMETRIC, _BITS_STORED, _HIGH_BIT, _SLOPE, _INTERCEPT, _LOOKUP_TABLE]
_DECIMAL = r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?"
_INVERTED = b"MONOCHROME1"
_UNDEFINED = 0xFFFFFFFF
_DEFER_ALL = 0  # bytes from which on pydicom goes by a value without reading it


@dataclass(frozen=True)
class PixelSize:
    """What a file says of its pixels: columns, rows, and the bytes that it promises and has (None: compressed).

    `inverted_at`: where in the file the last letter of MONOCHROME1 stands, which shows the lowest value white; None for
    others.
    """

    columns: int
    rows: int
    promised: int
    stored: int | None
    inverted_at: int | None = None


def pixel_size(path: Path) -> PixelSize:
    """Return what a DICOM file says of its pixels; `InputError` where its elements cannot be followed to them.

    Files whose elements are deflated as a whole are refused too, since they may grow without bound. Files whose values
    GDCM would misread are refused as well: a table of values, an invalid rescaling, bits at an unusual place.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what does not hinder: unknown alphabets, odd names
            if read_file_meta_info(path).get("TransferSyntaxUID") in _DEFLATED:
                raise InputError(f"{path} is deflated as a whole; convert it to NIfTI (dcm2niix does)")
            header, numbers, stored = _up_to_pixels(path)
            _check_values(path, header)
    except InputError:
        raise
    except Exception as error:  # a spoiled file makes pydicom raise nearly anything, too deep recursion included
        told = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: damaged DICOM elements ({told}); convert it to NIfTI (dcm2niix does)") from error
    return PixelSize(
        numbers[_COLUMNS], numbers[_ROWS], math.ceil(math.prod(numbers.values()) / 8), stored, _inverted_at(header)
    )


def _up_to_pixels(path: Path) -> tuple[FileDataset, dict[int, int], int | None]:
    """Return the header, the numbers of the pixels' size, and the length of the pixels, None if they are compressed."""
    seen: list[int] = []

    def at_pixels(tag: int, *_: object) -> bool:
        """Note each tag that comes; stop at the pixels."""
        seen.append(tag)
        return tag == _PIXELS

    # A memory map, unlike a file, never reads beyond its end, whatever length an element claims.
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        header = read_partial(content, at_pixels, specific_tags=[*_NUMBERS, *_VALUES])
        pixels = next(data_element_generator(content, *header.original_encoding, defer_size=_DEFER_ALL), None)
    if pixels is None:
        raise ValueError("no pixels")
    twice = [tag for tag in (*_NUMBERS, *_VALUES) if seen.count(tag) > 1]
    if twice:  # of two, pydicom takes the last and GDCM the first
        raise ValueError(f"{Tag(twice[0])} twice")
    numbers = {_SAMPLES: 1, **{tag: _number(header, tag) for tag in _NUMBERS if tag in header}}
    if len(numbers) < len(_NUMBERS):
        raise ValueError("no rows, columns or bits")
    return header, numbers, None if pixels.length == _UNDEFINED else pixels.length


def _number(header: FileDataset, tag: int) -> int:
    element = header.get_item(tag)  # its bytes as they stand
    if element.length != 2:
        raise ValueError(f"{element.tag} of {element.length} bytes")
    return int.from_bytes(element.value, "little" if element.is_little_endian else "big")


def _check_values(path: Path, header: FileDataset) -> None:
    """Refuse elements that say how stored bits become values, but that GDCM does not read in this way."""
    if _LOOKUP_TABLE in header:
        raise InputError(f"{path}: a table gives the values (Modality LUT Sequence); export them with slope, intercept")
    if _BITS_STORED in header and _HIGH_BIT in header:
        stored, high = _number(header, _BITS_STORED), _number(header, _HIGH_BIT)
        if high != stored - 1:
            raise InputError(f"{path}: values of {stored} bits end at bit {high}, not {stored - 1}; export them anew")
    for tag, name in ((_SLOPE, "slope"), (_INTERCEPT, "intercept")):
        text = _text(header, tag)
        number = float(text) if re.fullmatch(_DECIMAL, text) else math.nan
        if text and (not math.isfinite(number) or (tag == _SLOPE and number == 0)):
            raise InputError(f"{path}: the rescale {name} is {text!r}, so the values are unknown; export them anew")


def _text(header: FileDataset, tag: int) -> str:
    value = (header.get_item(tag).value if tag in header else None) or b""
    return value.decode("latin-1").strip(" \0")


def _inverted_at(header: FileDataset) -> int | None:
    if _PHOTOMETRIC not in header or _text(header, _PHOTOMETRIC).encode() != _INVERTED:
        return None
    element = header.get_item(_PHOTOMETRIC)
    return element.value_tell + element.value.index(_INVERTED) + len(_INVERTED) - 1
