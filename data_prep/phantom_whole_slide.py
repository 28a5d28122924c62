# SPDX-License-Identifier: Apache-2.0
"""One large drawn slide, as a scanner writes it: pieces of tissue on glass, in a tiled and pyramidal TIFF.

A few pieces are drawn, and laid down many times, turned and mirrored, in the squares of a grid; so a slide of 20,000
pixels a side takes the memory of its pieces and of one tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from tqdm import tqdm

from data_prep.phantom_shapes import smooth_noise
from data_prep.phantom_tissue import Stain, Tissue
from pipeline.errors import InputError
from pipeline.files.atomic import replace_when_complete

LEAST_SLIDE_PX = 512
PIXEL_UM = 0.5
LEVELS, FACTOR = 3, 4
_TILE_PX = 512
_SUFFIXES = (".tif", ".tiff")
# What cancer covers of each piece.
_CANCER_SHARES = (0.0, 0.3, 0.6, 0.0, 0.45, 0.8)
_MOST_PIECE_PX = 2048
_EMPTY_SHARE = 0.25
# The draws of picture n of a dataset are (seed, n); a slide's have a third number.
_SLIDE_STREAM = 2
_REDUCED = 1  # TIFF: a smaller version of another page
_CLASSIC_BYTES = 2**32 - 2**26


class DrawnSlide:
    """A slide of (side, side) pixels that draws any tile of any level; level n is 4 to the power of n times smaller."""

    def __init__(self, side: int, seed: int) -> None:
        self.side = side
        random = np.random.default_rng([seed, 0, _SLIDE_STREAM])
        stain = Stain.drawn(random)
        # Whole pixels at all levels; about four pieces in a row on a small slide.
        coarsest = FACTOR ** (LEVELS - 1)
        self._piece_px = min(_MOST_PIECE_PX, side // 4 // coarsest * coarsest)
        pieces = [_draw_piece(random, stain, self._piece_px, share) for share in _CANCER_SHARES]
        self._pieces = [pieces]
        for _ in range(1, LEVELS):
            self._pieces.append([_shrunk(piece) for piece in self._pieces[-1]])
        self.glass = np.rint(stain.glass).astype(np.uint8)
        pieces_a_side = side // self._piece_px
        self._margin_px = (side - pieces_a_side * self._piece_px) // 2 // coarsest * coarsest
        self._piece_numbers = random.integers(0, len(pieces), (pieces_a_side, pieces_a_side))
        self._piece_numbers[random.uniform(0, 1, (pieces_a_side, pieces_a_side)) < _EMPTY_SHARE] = -1
        self._orientations = random.integers(0, 8, (pieces_a_side, pieces_a_side))

    def level_px(self, level: int) -> int:
        """Return the side of a level in pixels."""
        return self.side // FACTOR**level

    def tiles(self, level: int) -> Iterator[np.ndarray]:
        """Yield the tiles (512, 512, 3) uint8 of a level, row by row; beyond the slide there is glass."""
        starts = range(0, self.level_px(level), _TILE_PX)
        for top in starts:
            for left in starts:
                yield self._region(level, top, left)

    def _region(self, level: int, top: int, left: int) -> np.ndarray:
        region = np.broadcast_to(self.glass, (_TILE_PX, _TILE_PX, 3)).copy()
        side, margin = self._piece_px // FACTOR**level, self._margin_px // FACTOR**level
        for row, column in np.argwhere(self._piece_numbers >= 0):
            down, right = margin + row * side - top, margin + column * side - left
            if not (-side < down < _TILE_PX and -side < right < _TILE_PX):
                continue
            piece = oriented(self._pieces[level][self._piece_numbers[row, column]], self._orientations[row, column])
            target = region[max(0, down) : down + side, max(0, right) : right + side]
            target[:] = piece[max(0, -down) :, max(0, -right) :][: target.shape[0], : target.shape[1]]
        return region


def _draw_piece(random: np.random.Generator, stain: Stain, side: int, cancer_share: float) -> np.ndarray:
    """Return a piece of tissue of irregular outline, with glass around it, (side, side, 3) uint8."""
    line = np.linspace(-1, 1, side, dtype=np.float32)
    bumps = smooth_noise(random, (side, side, 1), (5, 5, 1))[..., 0]
    inside = np.float32(random.uniform(0.62, 0.78)) - np.hypot(line[:, None], line) + 0.11 * bumps
    # Far enough from the rim that its blur ends in clear glass.
    rim = 1 - np.maximum(np.abs(line[:, None]), np.abs(line)) - np.float32(8 / side)
    tissue = np.clip(np.minimum(inside, rim) * side / 6, 0, 1)
    place = np.where(tissue > 0.5, line * np.float32(random.choice((-1, 1))) + 0.7 * bumps[::-1], np.nan)
    cancer = place > np.nanquantile(place, 1 - cancer_share) if cancer_share else np.zeros(place.shape, bool)
    return Tissue(random, tissue, cancer).colours(stain)


def _shrunk(piece: np.ndarray) -> np.ndarray:
    """Return a piece at the next level: the mean of 4 x 4 pixels."""
    side = len(piece) // FACTOR
    means = piece.reshape(side, FACTOR, side, FACTOR, 3).mean((1, 3))
    return np.rint(means).astype(np.uint8)


def oriented(piece: np.ndarray, orientation: int) -> np.ndarray:
    """Return a piece (S, S, 3) in one of eight orientations: `orientation` % 4 quarter turns, mirrored from 4 on."""
    turned = np.rot90(piece, orientation % 4)
    return turned[:, ::-1] if orientation >= 4 else turned


def write_whole_slide(path: str | Path, side: int, seed: int = 0) -> None:
    """Write a drawn slide of `side` x `side` pixels as TIFF: tiles of 512, deflate, 3 levels, 0.5 micrometres a pixel.

    Raises `InputError` for a file that exists, is not named as TIFF or cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(f"{path} is to be a TIFF; name it .tif")
    if path.exists() or path.is_symlink():
        raise InputError(f"{path} exists already; remove it or choose another name")
    with replace_when_complete(path) as temporary:
        slide = DrawnSlide(side, seed)
        with tifffile.TiffWriter(temporary, bigtiff=3 * side**2 * 1.1 > _CLASSIC_BYTES) as writer:
            for level in range(LEVELS):
                _write_level(writer, slide, level)


def _write_level(writer: tifffile.TiffWriter, slide: DrawnSlide, level: int) -> None:
    side = slide.level_px(level)
    per_cm = 10_000 / (PIXEL_UM * FACTOR**level)
    count = math.ceil(side / _TILE_PX) ** 2
    writer.write(
        iter(tqdm(slide.tiles(level), desc=f"level {level}", total=count, unit="tile", disable=None)),
        shape=(side, side, 3),
        dtype=np.uint8,
        photometric="rgb",
        tile=(_TILE_PX, _TILE_PX),
        compression="zlib",
        predictor=True,
        resolution=(per_cm, per_cm),
        resolutionunit="CENTIMETER",
        subfiletype=_REDUCED if level else 0,
        metadata=None,
        software="data_prep.phantom_slides",
        # One worker: more of them would hold more tiles at once than the disk takes.
        maxworkers=1,
    )
