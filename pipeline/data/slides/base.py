# SPDX-License-Identifier: Apache-2.0
"""Histology slides, of any size: regions of level 0 as RGB, and a small picture of the whole.

A slide of 100,000 pixels a side does not fit into memory, so only the requested region is decoded. MONAI's
`WSIReader` is not used: with tifffile it decodes the whole level for every region (`asarray(level=...)`, MONAI 1.6.1),
and with any backend one damaged tile ends the reading. Here such a tile is returned white and listed in
`Slide.unreadable`.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from scipy.sparse import csr_array

from pipeline.data.slides.pictures import COLOUR, GREY
from pipeline.errors import InputError

WHITE = 255
# The value of a label map where the slide could not be read.
UNREADABLE = 255

# Scanners write 0.1 to 10 micrometres a pixel; 72, 96 or 300 dots an inch are what programs put in for "unknown".
_CREDIBLE_UM = (0.05, 20.0)
_BLOCK_PX = 1024

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unreadable:
    """A part of a slide that cannot be read: the level of the pyramid, and the place in pixels of level 0."""

    level: int
    top: int
    left: int
    height: int
    width: int
    reason: str


class LevelError(Exception):
    """A level of the pyramid above 0 that cannot be read whole; the message is the reason."""


class Slide(ABC):
    """An open slide, to be closed or used in a `with` statement, by one thread at a time of the process that opened it.

    `height` and `width` are those of level 0 in pixels, `pixel_um` is the side of its pixels in micrometres, or None if
    unknown. `unreadable` grows while reading and lists each damaged part once; `notes` lists what is odd but safe.
    """

    def __init__(self, path: str | os.PathLike[str], height: int, width: int, pixel_um: float | None = None) -> None:
        self.path, self.height, self.width = Path(path), height, width
        self.pixel_um = credible_um(pixel_um)
        self.unreadable: list[Unreadable] = []
        self.notes: list[str] = []
        self._known_unreadable: set[tuple[int, int, int]] = set()
        self._unreadable_px = 0

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Return a region of level 0 as (height, width, 3) uint8 RGB; parts that cannot be read are white.

        Raises ValueError for a region that is empty or reaches outside, `InputError` once nothing at all is readable.
        """
        if min(top, left) < 0 or min(height, width) < 1 or top + height > self.height or left + width > self.width:
            raise ValueError(
                f"region of {height} x {width} at {top}, {left} is not inside a slide of {self.height} x {self.width}"
            )
        return self._read_level(0, top, left, height, width)

    def thumbnail(self, longest_px: int) -> np.ndarray:
        """Return the whole slide as (h, w, 3) uint8, each pixel the average of its area, h and w at most `longest_px`.

        The smallest level that is at least as large is read, block by block. A level that cannot be read is listed in
        `unreadable`, and the next finer one is taken. Raises `InputError` if nothing at all is readable.
        """
        if longest_px < 1:
            raise ValueError(f"longest_px is {longest_px}, not positive")
        shrink = min(1.0, longest_px / max(self.height, self.width))
        size = max(1, round(self.height * shrink)), max(1, round(self.width * shrink))
        sizes = self._level_sizes()
        broken = {part.level for part in self.unreadable}
        for level in sorted(set(range(1, len(sizes))) - broken, key=lambda level: sizes[level]):
            if sizes[level][0] < size[0] or sizes[level][1] < size[1]:
                continue
            try:
                return self._averaged(level, size)
            except LevelError as error:
                self._add_unreadable(Unreadable(level, 0, 0, self.height, self.width, str(error)))
        return self._averaged(0, size)

    def close(self) -> None:  # noqa: B027 - an image in memory has nothing to close
        """Let go of the file."""

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def _read_level(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Return a region of a level as `read` does; `LevelError` for damage above level 0."""

    def _level_sizes(self) -> list[tuple[int, int]]:
        """Return (height, width) of each level, level 0 first."""
        return [(self.height, self.width)]

    def _block_shape(self, level: int) -> tuple[int, int]:
        """Return the (rows, columns) in which a level is best read whole."""
        return _BLOCK_PX, _BLOCK_PX

    def _add_unreadable(self, part: Unreadable) -> None:
        """List a part that cannot be read, once, and say so in one line of the log."""
        place = part.level, part.top, part.left
        if place in self._known_unreadable:
            return
        self._known_unreadable.add(place)
        self.unreadable.append(part)
        if part.level > 0:
            _log.warning("%s: level %d cannot be read (%s); a finer one is used", self.path, part.level, part.reason)
            return
        _log.warning(
            "%s: level 0: the %d x %d pixels at x=%d, y=%d cannot be read (%s); they count as unreadable",
            self.path, part.width, part.height, part.left, part.top, part.reason,
        )  # fmt: skip
        self._unreadable_px += part.height * part.width
        if self._unreadable_px >= self.height * self.width:
            raise InputError(f"nothing of {self.path} can be read ({part.reason}); copy it anew")

    def _averaged(self, level: int, size: tuple[int, int]) -> np.ndarray:
        """Return a level reduced to `size` by averages over areas, in blocks, as (h, w, 3) uint8."""
        height, width = self._level_sizes()[level]
        sums = np.zeros((*size, COLOUR))
        for top, left, rows, columns in _blocks((height, width), self._block_shape(level)):
            block = self._read_level(level, top, left, rows, columns)
            first_row, row_shares = area_shares(top, rows, height, size[0])
            first_column, column_shares = area_shares(left, columns, width, size[1])
            part = column_shares @ block.swapaxes(0, 1).reshape(columns, -1).astype(np.float64)
            part = part.reshape(-1, rows, COLOUR).swapaxes(0, 1).reshape(rows, -1)
            part = (row_shares @ part).reshape(row_shares.shape[0], -1, COLOUR)
            sums[first_row : first_row + part.shape[0], first_column : first_column + part.shape[1]] += part
        return np.rint(sums / (height * width)).astype(np.uint8)


class ArraySlide(Slide):
    """An image in memory as a slide: (H, W, 3) or (H, W, 1) uint8; grey is repeated by `read`."""

    def __init__(self, pixels: np.ndarray, path: str | os.PathLike[str] = Path("array")) -> None:
        if pixels.ndim != 3 or pixels.shape[2] not in (GREY, COLOUR) or pixels.dtype != np.uint8 or not pixels.size:
            raise ValueError(f"pixels are {pixels.dtype} {pixels.shape}, not uint8 (H, W, 1 or 3)")
        super().__init__(path, *pixels.shape[:2])
        self.pixels = pixels

    def _read_level(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        region = self.pixels[top : top + height, left : left + width]
        return np.repeat(region, COLOUR, axis=2) if region.shape[2] == GREY else region.copy()


def first_bytes(path: Path) -> bytes:
    """Return the first 16 bytes of a file; `InputError` if it cannot be read or is empty."""
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise InputError(f"cannot read the slide {path}: {error.strerror}; check the path") from error
    if not head:
        raise InputError(f"{path} is empty (0 bytes); copy it anew")
    return head


def credible_um(pixel_um: float | None) -> float | None:
    """Return the pixel side in micrometres if it is possible for a microscope, else None."""
    if pixel_um is None or not _CREDIBLE_UM[0] <= pixel_um <= _CREDIBLE_UM[1]:
        return None
    return pixel_um


def area_shares(start: int, count: int, length: int, size: int) -> tuple[int, csr_array]:
    """Tell how the pixels `start`, `start` + 1 ... of an axis of `length` are shared out among `size` equal bins.

    Returns the first bin touched and (bins touched, `count`) shares in units of 1 / `size` pixel. These are whole
    numbers, so that sums over a slide are exact. `size` is at most `length`: a pixel lies in one bin or in two.
    """
    pixels = np.arange(start, start + count)
    first = pixels * size // length
    last = ((pixels + 1) * size - 1) // length
    in_last = np.where(last > first, (pixels + 1) * size - last * length, 0)
    shares = np.concatenate([size - in_last, in_last]).astype(np.float64)
    bins = np.concatenate([first, last]) - first[0]
    shape = int(last[-1] - first[0]) + 1, count
    return int(first[0]), csr_array((shares, (bins, np.tile(pixels - start, 2))), shape=shape)


def _blocks(size: tuple[int, int], shape: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    for top in range(0, size[0], shape[0]):
        for left in range(0, size[1], shape[1]):
            yield top, left, min(shape[0], size[0] - top), min(shape[1], size[1] - left)
