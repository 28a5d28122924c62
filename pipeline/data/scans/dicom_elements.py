# SPDX-License-Identifier: Apache-2.0
"""What a DICOM file says of its pixels and how many it holds, read by pydicom up to the pixels.

GDCM fills up what is missing and drops what is too much: a header with a wrong number of rows would give an image of
another shape without a word.
"""

from __future__ import annotations

import math
import mmap
import warnings
from dataclasses import dataclass
from pathlib import Path

from pydicom.filereader import data_element_generator, read_file_meta_info, read_partial
from pydicom.uid import DeflatedExplicitVRLittleEndian

from pipeline.errors import InputError

_DEFLATED = (DeflatedExplicitVRLittleEndian, "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205")  # the others: JPIP
_PIXELS = 0x7FE00010
_ROWS, _COLUMNS, _BITS, _SAMPLES = _NUMBERS = [0x00280010, 0x00280011, 0x00280100, 0x00280002]
_UNDEFINED = 0xFFFFFFFF
_DEFER_ALL = 0  # bytes from which on pydicom goes by a value without reading it


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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what does not hinder: unknown alphabets, odd names
            if read_file_meta_info(path).get("TransferSyntaxUID") in _DEFLATED:
                raise InputError(f"{path} is deflated as a whole; convert it to NIfTI (dcm2niix does)")
            numbers, stored = _up_to_pixels(path)
    except InputError:
        raise
    except Exception as error:  # a spoiled file makes pydicom raise nearly anything, too deep recursion included
        told = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: damaged DICOM elements ({told}); convert it to NIfTI (dcm2niix does)") from error
    return PixelSize(numbers[_COLUMNS], numbers[_ROWS], math.ceil(math.prod(numbers.values()) / 8), stored)


def _up_to_pixels(path: Path) -> tuple[dict[int, int], int | None]:
    """Return the numbers that give the pixels' size, and the length of the pixels, None where they are compressed."""
    seen: list[int] = []

    def at_pixels(tag: int, *_: object) -> bool:
        """Note each tag that comes; stop at the pixels."""
        seen.append(tag)
        return tag == _PIXELS

    # A map, unlike a file, never reads or goes behind its end, whatever length an element claims.
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        header = read_partial(content, at_pixels, specific_tags=_NUMBERS)
        pixels = next(data_element_generator(content, *header.original_encoding, defer_size=_DEFER_ALL), None)
    if pixels is None:
        raise ValueError("no pixels")
    numbers = {_SAMPLES: 1}
    for tag in _NUMBERS:
        if tag not in header:
            continue
        element = header.get_item(tag)  # its bytes as they stand
        if element.length != 2 or seen.count(tag) > 1:  # of two, pydicom takes the last and GDCM the first
            raise ValueError(f"{element.tag} twice or of {element.length} bytes")
        numbers[tag] = int.from_bytes(element.value, "little" if element.is_little_endian else "big")
    if len(numbers) < len(_NUMBERS):
        raise ValueError("no rows, columns or bits")
    return numbers, None if pixels.length == _UNDEFINED else pixels.length
