# SPDX-License-Identifier: Apache-2.0
"""Slides as TIFF, flat or pyramidal, in tiles or strips: only the segments that a region touches are decoded.

tifffile finds the pages and decodes single segments, the tiles or strips of the file. Its `asarray`, which MONAI's
`WSIReader` calls, decodes a level whole.
"""

from __future__ import annotations

import math
import os
import re
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile

from pipeline.data.slides.base import WHITE, LevelError, Slide, Unreadable, first_bytes
from pipeline.data.slides.pictures import COLOUR, GREY
from pipeline.errors import InputError

CACHE_BYTES = 256 * 2**20  # two rows of 512-pixel tiles of a slide 80,000 pixels wide
MAX_SEGMENT_BYTES = 2 * 2**30

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _INKS, _YCBCR = 0, 1, 2, 3, 5, 6
_PLAIN, _LZW, _JPEG, _PACKBITS = 1, 5, 7, 32773
_DEFLATE = (8, 32946)
_JPEG_2000, _LOSSY = (33005, 34712), (50001, 50002, 52546, 34933)
_ZSTD = 50000
_WITHOUT_CODECS = (_PLAIN, _PACKBITS, *_DEFLATE)
_WITH_CODECS = (_LZW, _JPEG, *_JPEG_2000, *_LOSSY, _ZSTD)
_MASK_PAGE = 4
_DEFLATE_RATIO = 1032  # the most that deflate can shrink anything (zlib's technical notes)
_PLAIN_ROWS_BYTES = 2**20
_BLOCK_BYTES = 2**22
_UM_A_UNIT = {2: 25400.0, 3: 10000.0}  # TIFF's ResolutionUnit: inch, centimetre


class TiffSlide(Slide):
    """A TIFF of 8-bit grey or RGB, classic or BigTIFF; decoded segments are kept up to `cache_bytes`.

    Levels are the sub-images of the first page and further pages with the same aspect ratio. A segment without bytes is
    white background. A segment that lies outside the file or cannot be decoded is white and listed in `unreadable`.
    JPEG has no checksum: only a missing end and errors of libjpeg are found. Raises `InputError` for other kinds of
    TIFF.
    """

    def __init__(self, path: str | os.PathLike[str], cache_bytes: int = CACHE_BYTES) -> None:
        path = Path(path)
        self._cache: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()
        self._cache_limit, self.cached_bytes = cache_bytes, 0
        if first_bytes(path)[:4] not in _MAGIC:
            raise InputError(f"{path} is no TIFF; copy it anew, or give it the suffix of what it is")
        try:
            self._tiff = tifffile.TiffFile(path)
        except Exception as error:  # damaged headers raise TiffFileError, ValueError, struct.error and more
            raise _damaged(path, error) from error
        try:
            base = self._base_level(path)
            super().__init__(path, base.height, base.width, _pixel_um(base.page))
            self._levels: list[_Level | None] = [base]
            self._find_levels()
        except InputError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise _damaged(path, error) from error

    def close(self) -> None:
        """Let go of the file and of what was decoded."""
        self._cache.clear()
        self.cached_bytes = 0
        self._tiff.close()

    def _base_level(self, path: Path) -> _Level:
        page = self._tiff.pages[0]
        refusal = _refusal(page)
        if refusal:
            raise InputError(f"{path} {refusal}")
        level = _Level(page)
        problem = level.problem()
        if problem:
            raise InputError(f"{path} {problem}")
        return level

    def _find_levels(self) -> None:
        """Sort the other pages: levels, notes about what is none, and `InputError` for several images in one file."""
        for name, page in _further_pages(self._tiff):
            if isinstance(page, Exception):
                self._add_level(None, f"{name} is damaged: {_first_line(page)}")
                continue
            height, width = page.imagelength, page.imagewidth
            is_mask = bool(page.subfiletype & _MASK_PAGE)
            if height >= self.height and width >= self.width and not is_mask:
                raise InputError(
                    f"{self.path}: {name} is {width} x {height}, as large as the slide itself ({self.width} x "
                    f"{self.height}); save the image that is meant as a file of its own"
                )
            # One pixel is allowed, since small levels are rounded.
            off = abs(height - self.height * width / self.width)
            reason = "is a mask" if is_mask else _refusal(page)
            if off > max(1.0, 0.01 * height) or height > self.height or width > self.width:
                reason = "has another aspect, as labels and overviews of the glass have"
            if reason:
                self.notes.append(f"{name}, {width} x {height}, is no level of this slide: it {reason}")
            else:
                level = _Level(page)
                self._add_level(level, level.problem())

    def _add_level(self, level: _Level | None, problem: str | None) -> None:
        """Add a level, which keeps its number in the file's order also where it cannot be read."""
        self._levels.append(None if problem else level)
        if problem:
            self._add_unreadable(Unreadable(len(self._levels) - 1, 0, 0, self.height, self.width, problem))

    def _level_sizes(self) -> list[tuple[int, int]]:
        return [(0, 0) if level is None else (level.height, level.width) for level in self._levels]

    def _block_shape(self, level: int) -> tuple[int, int]:
        """Return whole tiles, or whole rows where the level is in strips, of a few megabytes."""
        grid = self._levels[level]
        columns = min(grid.width, grid.columns * max(1, round(1024 / grid.columns)))
        rows = max(1, _BLOCK_BYTES // (columns * COLOUR))
        return rows // grid.rows * grid.rows or rows, columns

    def _read_level(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        grid = self._levels[level]
        region = np.full((height, width, COLOUR), WHITE, np.uint8)
        for row in range(top // grid.rows, (top + height - 1) // grid.rows + 1):
            for column in range(left // grid.columns, (left + width - 1) // grid.columns + 1):
                segment = self._segment(level, row, column)
                if segment is None:
                    continue
                y, x = row * grid.rows, column * grid.columns
                y0, y1 = max(top, y), min(top + height, y + grid.rows)
                x0, x1 = max(left, x), min(left + width, x + grid.columns)
                region[y0 - top : y1 - top, x0 - left : x1 - left] = segment[y0 - y : y1 - y, x0 - x : x1 - x]
        return region

    def _segment(self, level: int, row: int, column: int) -> np.ndarray | None:
        """Return the pixels of a segment, (h, w, 1 or 3) uint8, or None where there are none."""
        key = level, row, column
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        grid = self._levels[level]
        top, left = row * grid.rows, column * grid.columns
        if (level, top, left) in self._known_unreadable:
            return None
        try:
            segment = grid.read(row, column)
        except _SegmentError as error:
            if level > 0:
                raise LevelError(f"at x={left}, y={top} of it: {error}") from error
            height, width = min(grid.rows, self.height - top), min(grid.columns, self.width - left)
            self._add_unreadable(Unreadable(level, top, left, height, width, str(error)))
            return None
        if segment is not None:
            self._cache[key] = segment
            self.cached_bytes += segment.nbytes
        # The newest stays whatever its size: the next region most likely needs it again.
        while self.cached_bytes > self._cache_limit and len(self._cache) > 1:
            self.cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return segment


class _SegmentError(Exception):
    """A segment that cannot be decoded; the message is the reason."""


class _Level:
    """One page as a grid of segments of `rows` x `columns` pixels.

    Plain pixels in a single strip, as many programs write whole images, are cut into groups of rows.
    """

    def __init__(self, page: tifffile.TiffPage) -> None:
        self.page = page
        self.height, self.width = page.imagelength, page.imagewidth
        self.offsets, self.counts = page.dataoffsets, page.databytecounts
        self.planes = page.samplesperpixel if page.planarconfig == 2 else 1
        self.samples = page.samplesperpixel // self.planes
        if page.is_tiled:
            self.rows, self.columns = page.tilelength, page.tilewidth
        else:
            self.rows, self.columns = min(page.rowsperstrip, self.height), self.width
        self.row_bytes = self.columns * self.samples
        self.is_plain = page.compression == _PLAIN and page.predictor == 1 and page.fillorder == 1
        self.is_one_strip = self.is_plain and not page.is_tiled and self.rows == self.height
        if self.is_one_strip:
            self.rows = min(self.rows, max(1, _PLAIN_ROWS_BYTES // self.row_bytes))

    def problem(self) -> str | None:
        """Say why the level cannot be read at all, or only with memory out of all proportion; None if it can."""
        if min(self.rows, self.columns) < 1:
            return f"is damaged: its header says {self.columns} x {self.rows} pixels a tile"
        size = self.rows * self.row_bytes * self.planes
        if size > MAX_SEGMENT_BYTES:
            return f"must be decoded {size / 2**30:.0f} GiB at a time (one strip or tile); save it in tiles"
        down = 1 if self.is_one_strip else math.ceil(self.height / self.rows)
        expected = down * math.ceil(self.width / self.columns) * self.planes
        if not len(self.offsets) == len(self.counts) == expected:
            return f"is truncated or damaged: it lists {len(self.offsets)} of {expected} tiles or strips; copy it anew"
        if not any(self.counts):
            return f"holds no pixels: all {expected} tiles or strips are empty; copy it anew"
        file_size = self.page.parent.filehandle.size
        if not any(count and offset < file_size for offset, count in zip(self.offsets, self.counts, strict=True)):
            return f"is truncated: its {file_size} bytes end before the pixels begin; copy it anew"
        return None

    def read(self, row: int, column: int) -> np.ndarray | None:
        """Decode a segment: (h, w, 1 or 3) uint8, or None where the file holds none; `_SegmentError` for damage."""
        planes = [self._read_plane(row, column, plane) for plane in range(self.planes)]
        if any(plane is None for plane in planes):
            return None
        pixels = planes[0] if self.planes == 1 else np.concatenate(planes, axis=2)
        return WHITE - pixels if self.page.photometric == _MIN_IS_WHITE else pixels

    def _read_plane(self, row: int, column: int, plane: int) -> np.ndarray | None:
        if self.is_one_strip:
            return self._read_rows(row * self.rows, plane)
        across, down = math.ceil(self.width / self.columns), math.ceil(self.height / self.rows)
        index = (plane * down + row) * across + column
        count = self.counts[index]
        if count == 0:
            return None
        self._check_size(count)
        data = self._bytes(self.offsets[index], count)
        try:
            self._check_ends(data)
            pixels = self.page.decode(data, index, jpegtables=self.page.jpegtables)[0][0]
        except Exception as error:  # each codec raises its own kinds
            raise _SegmentError(_first_line(error)) from error
        if pixels.dtype != np.uint8:
            raise _SegmentError(f"it decodes to {pixels.dtype}")
        return pixels

    def _read_rows(self, top: int, plane: int) -> np.ndarray | None:
        if self.counts[plane] == 0:
            return None
        rows = min(self.rows, self.height - top)
        begin, size = top * self.row_bytes, rows * self.row_bytes
        if begin + size > self.counts[plane]:
            raise _SegmentError("the strip is shorter than its rows")
        data = self._bytes(self.offsets[plane] + begin, size)
        return np.frombuffer(data, np.uint8).reshape(rows, self.columns, self.samples)

    def _check_size(self, count: int) -> None:
        """Refuse more bytes than the pixels could ever take: what they decode to would be out of all proportion."""
        pixels = self.rows * self.row_bytes
        if count > 2 * pixels + 2**16:
            raise _SegmentError(f"it has {count} bytes for {pixels} bytes of pixels")

    def _check_ends(self, data: bytes) -> None:
        """Raise for what codecs pass over: JPEG data that are cut off, deflate data that do not end."""
        if self.page.compression == _JPEG and b"\xff\xd9" not in data[-16:]:
            raise _SegmentError("its JPEG data end early")
        if self.page.compression in _DEFLATE and len(data) * _DEFLATE_RATIO > MAX_SEGMENT_BYTES:
            limit, inflated, stream = self.rows * self.row_bytes, 0, zlib.decompressobj()
            while not stream.eof and data:
                inflated += len(stream.decompress(data, 2**24))
                if inflated > limit:
                    raise _SegmentError(f"it inflates to more than its {limit} bytes of pixels")
                data = stream.unconsumed_tail

    def _bytes(self, offset: int, count: int) -> bytes:
        file = self.page.parent.filehandle
        if offset + count > file.size:
            where = "outside the file" if offset >= file.size else "partly outside the file"
            raise _SegmentError(f"it lies {where}: bytes {offset} to {offset + count} of {file.size}")
        file.seek(offset)
        return file.read(count)


def _further_pages(tiff: tifffile.TiffFile) -> Iterator[tuple[str, tifffile.TiffPage | Exception]]:
    """Yield the name and page of each sub-image of the first page and of each other page, or the error instead.

    tifffile's own list of sub-images is empty where the first of them is damaged.
    """
    for number, offset in enumerate(tiff.pages[0].subifds or ()):
        try:
            tiff.filehandle.seek(offset)
            yield f"sub-image {number + 1}", tifffile.TiffPage(tiff, index=(0, number))
        except Exception as error:  # as for the first page
            yield f"sub-image {number + 1}", error
    for number in range(1, len(tiff.pages)):
        try:
            yield f"page {number + 1}", tiff.pages[number]
        except Exception as error:
            yield f"page {number + 1}", error
    end = tiff.pages.next_page_offset
    if end:
        tiff.filehandle.seek(end)
        if any(tiff.filehandle.read(tiff.tiff.offsetsize)):
            yield "a further page", tifffile.TiffFileError("the list of pages points outside the file")


def _refusal(page: tifffile.TiffPage) -> str | None:
    """Say what is wrong with a page that is not 8-bit grey or RGB or cannot be decoded here, else None."""
    if min(page.imagelength, page.imagewidth) < 1:
        return "is truncated or damaged: its header gives no size"
    if page.photometric == _PALETTE:
        return "has a palette; save it as plain RGB"
    if page.photometric == _INKS:
        return "holds inks (CMYK), not colours of light; convert it to RGB with its own profile"
    if page.bitspersample == 1:
        return "has one bit a pixel, so it is a mask, not an image"
    if page.bitspersample != 8 or page.sampleformat != 1:
        return f"has {page.bitspersample} bits a channel; save it with 8, unsigned, scaled as it should look"
    if page.photometric not in (_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _YCBCR):
        return f"is of kind {_name(page.photometric)}; save it as RGB"
    channels = COLOUR if page.photometric in (_RGB, _YCBCR) else GREY
    if page.samplesperpixel > channels:
        return "has an alpha channel or further ones; flatten it onto white and save it as RGB"
    if page.samplesperpixel != channels or page.imagedepth != 1:
        return f"is damaged or no picture: {page.samplesperpixel} channels and {page.imagedepth} planes"
    orientation = page.tags.valueof(274, 1)
    if orientation != 1:
        return f"is to be turned by viewers (orientation {orientation}); save it as it should lie"
    return _refused_compression(page)


def _refused_compression(page: tifffile.TiffPage) -> str | None:
    if page.compression not in (*_WITHOUT_CODECS, *_WITH_CODECS) or page.predictor not in (1, 2):
        how = f"{_name(page.compression)}, predictor {_name(page.predictor)}"
        return f"is compressed as {how}, which is not read here; save it with deflate or as JPEG"
    if page.photometric == _YCBCR and page.compression != _JPEG:
        return "holds YCbCr colours outside JPEG; save it as RGB"
    if page.compression in _WITH_CODECS and not _has_codecs():
        return (
            f"is compressed as {_name(page.compression)}, which needs the package imagecodecs: "
            'pip install -e ".[wsi]", or save it with deflate'
        )
    return None


def _name(value: object) -> str:
    return str(getattr(value, "name", value))


def _has_codecs() -> bool:
    try:
        import imagecodecs  # noqa: F401
    except ImportError:
        return False
    return True


def _pixel_um(page: tifffile.TiffPage) -> float | None:
    """Return micrometres a pixel from Aperio's description or the resolution tags, where both axes agree to 1 %."""
    stated = re.search(r"\bMPP\s*=\s*(\d+\.?\d*)", page.description)
    if stated:
        return float(stated.group(1))
    unit_um = _UM_A_UNIT.get(int(page.tags.valueof(296, 2)))
    across, down = page.tags.valueof(282, (0, 1)), page.tags.valueof(283, (0, 1))
    if unit_um is None or 0 in across or 0 in down:
        return None
    across_um, down_um = unit_um * across[1] / across[0], unit_um * down[1] / down[0]
    return across_um if abs(across_um - down_um) <= 0.01 * across_um else None


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is truncated or damaged ({_first_line(error)}); copy it anew")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
