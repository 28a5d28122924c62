# SPDX-License-Identifier: Apache-2.0
"""Label maps of slides as pyramidal TIFF, written while the labels arrive."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tifffile

TILE_PX = 512
REDUCTION = 4
# Of four samples, the one next to the centre, since none lies at the centre.
_SAMPLE = 1
_UM_PER_CM = 1e4
# Offsets of plain TIFF have 32 bits. Labels usually shrink a hundredfold; those that don't must not fail after hours.
_PLAIN_TIFF_BYTES = 2**32 - 2**25


def write_label_pyramid(
    path: Path, bands: Iterable[np.ndarray], shape: tuple[int, int], pixel_um: float | None = None
) -> None:
    """Write a label map as tiled, deflated 8-bit TIFF; each level has a quarter of the side of the one before.

    Smaller levels are sampled (nearest neighbour). Level 0 is written while `bands` are consumed, so that memory holds
    one band and one row of tiles. The smaller levels wait in a temporary file in the folder of `path`. Smaller levels
    are pages of their own, marked as reduced images, down to one tile: OpenSlide and tifffile both see the pyramid.
    Values are grey levels, not colours of a palette.

    Args:
        path: file to write; not atomic, see `pipeline.files.atomic`.
        bands: (rows, width) uint8 from the top down; rows add up to the height.
        shape: (height, width) of the label map.
        pixel_um: side of a pixel in micrometres, for the resolution; None leaves it out.
    """
    big = shape[0] * shape[1] * 16 / 15 > _PLAIN_TIFF_BYTES
    strips = _strips(bands, shape)
    with tifffile.TiffWriter(path, bigtiff=big) as writer, tempfile.TemporaryFile(dir=path.parent) as waiting:
        size = shape
        while True:
            smaller = _reduced_size(size)
            store = _StripStore(waiting)
            last = max(size) <= TILE_PX or min(smaller) == 0
            writer.write(
                _tiles(strips if last else _keep_reduced(strips, store)),
                shape=size,
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                compression="zlib",
                photometric="minisblack",
                subfiletype=0 if size == shape else 1,
                metadata=None,
                software=False,
                maxworkers=1,
                **_resolution(pixel_um, shape, size),
            )
            if last:
                return
            strips, size = _strips(store, smaller), smaller


def _resolution(pixel_um: float | None, shape: tuple[int, int], size: tuple[int, int]) -> dict[str, object]:
    if pixel_um is None:
        return {}
    per_cm = [_UM_PER_CM / pixel_um * small / whole for small, whole in zip(size, shape, strict=True)]
    return {"resolution": (per_cm[1], per_cm[0]), "resolutionunit": "CENTIMETER"}


def _reduced_size(size: tuple[int, int]) -> tuple[int, int]:
    height, width = (len(range(_SAMPLE, length, REDUCTION)) for length in size)
    return height, width


def _strips(bands: Iterable[np.ndarray], shape: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yield the rows of `bands` anew, `TILE_PX` at a time, the last strip with what remains."""
    height, width = shape
    strip, filled, seen = np.empty((TILE_PX, width), np.uint8), 0, 0
    for band in bands:
        seen += len(band)
        if seen > height:
            break
        done = 0
        while done < len(band):
            taken = min(TILE_PX - filled, len(band) - done)
            strip[filled : filled + taken] = band[done : done + taken]
            filled, done = filled + taken, done + taken
            if filled == TILE_PX:
                yield strip
                filled = 0
    if seen != height:
        raise ValueError(f"the bands have {seen} rows or more, not the {height} of the label map")
    if filled:
        yield strip[:filled]


def _tiles(strips: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the tiles of strips, from left to right, filled up with zeros."""
    for strip in strips:
        for left in range(0, strip.shape[1], TILE_PX):
            part = strip[:, left : left + TILE_PX]
            tile = np.zeros((TILE_PX, TILE_PX), np.uint8)
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile


def _keep_reduced(strips: Iterable[np.ndarray], store: _StripStore) -> Iterator[np.ndarray]:
    """Pass strips on, and keep their samples for the next level; strips are whole multiples of `REDUCTION` high."""
    for strip in strips:
        store.append(strip[_SAMPLE::REDUCTION, _SAMPLE::REDUCTION])
        yield strip


class _StripStore:
    """Strips of a level, deflated and appended to a file, to be read back once in the same order."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._strip_positions: list[tuple[int, int, tuple[int, int]]] = []

    def append(self, strip: np.ndarray) -> None:
        """Write a strip (rows, width) uint8 after the others."""
        content = zlib.compress(np.ascontiguousarray(strip), 1)
        offset = self._file.seek(0, 2)
        self._file.write(content)
        self._strip_positions.append((offset, len(content), strip.shape))

    def __iter__(self) -> Iterator[np.ndarray]:
        for offset, length, shape in self._strip_positions:
            self._file.seek(offset)
            yield np.frombuffer(zlib.decompress(self._file.read(length)), np.uint8).reshape(shape)
