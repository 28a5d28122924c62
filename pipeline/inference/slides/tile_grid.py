# SPDX-License-Identifier: Apache-2.0
"""Where the tiles of an image lie, and how their overlapping logits become labels, a band of rows at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.inference.label_upsampling import first_of_largest


@dataclass(frozen=True)
class TileGrid:
    """Square tiles `step` pixels apart from the top left of an image, the last ones reaching beyond its border.

    `height` and `width` are at least `tile_px`, and `step` is at most `tile_px`, so that pixels beyond the border can
    be mirrored. Tiles are regular, while MONAI's sliding window moves the last ones back into the image. So a pixel has
    the same tiles in a slide as in any region of it that begins at a multiple of `step`.
    """

    height: int
    width: int
    tile_px: int
    step: int

    @property
    def tops(self) -> range:
        """First rows of the tiles."""
        return _starts(self.height, self.tile_px, self.step)

    @property
    def lefts(self) -> range:
        """First columns of the tiles."""
        return _starts(self.width, self.tile_px, self.step)

    def band(self, row: int) -> tuple[int, int]:
        """Return (first row, number of rows) of the pixels that are complete after tile row `row` and not before."""
        top = self.tops[row]
        return top, self.step if row + 1 < len(self.tops) else self.height - top


def _starts(length: int, tile_px: int, step: int) -> range:
    further = -(-(length - tile_px) // step)
    return range(0, (further + 1) * step, step)


def mirrored(start: int, tile_px: int, length: int) -> tuple[int, int, np.ndarray | None]:
    """Return (first, count, order): the pixels of an axis of `length` that a tile needs, and their order in it.

    The axis goes on beyond its end as its mirror image, without the last pixel twice; `order` is None for a tile that
    ends before.
    """
    if start + tile_px <= length:
        return start, tile_px, None
    places = np.arange(start, start + tile_px)
    places = np.where(places < length, places, 2 * (length - 1) - places)
    first = int(places.min())
    return first, length - first, places - first


def blending_window(tile_px: int, step: int, device: torch.device) -> Tensor:
    """Return the weights (tile_px, tile_px) of a tile's pixels: ramps where tiles overlap, positive everywhere.

    At overlaps up to a half, the weights of all tiles at a pixel add up to one.
    """
    overlap = tile_px - step
    place = torch.arange(1, tile_px + 1, dtype=torch.float32, device=device)
    ramp = torch.minimum(place, tile_px + 1 - place).div_(overlap + 1).clamp_(max=1.0)
    return torch.outer(ramp, ramp)


class BandBlender:
    """Adds up weighted logits of one row of tiles after the other, and gives the labels of the rows that are complete.

    Holds sums (K, tile_px, width) float32 on `device`, from the first logits on. The sums are not divided by the
    weights, which scale the logits of all classes alike. Pixels without any logits stay 0 and so get label 0.
    """

    def __init__(self, grid: TileGrid, device: torch.device) -> None:
        self._grid, self.device = grid, device
        self._window = blending_window(grid.tile_px, grid.step, device)
        self._sums: Tensor | None = None

    @torch.inference_mode()
    def add(self, logits: Tensor, left: int) -> None:
        """Add the logits (K, S, S) of the tile that begins at column `left` of the current row of tiles."""
        grid = self._grid
        if self._sums is None:
            self._sums = torch.zeros(len(logits), grid.tile_px, grid.width, device=self.device)
        if logits.shape[-1] != grid.tile_px:
            size = (grid.tile_px, grid.tile_px)
            logits = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
        columns = min(grid.tile_px, grid.width - left)
        self._sums[:, :, left : left + columns].addcmul_(logits[..., :columns], self._window[:, :columns])

    @torch.inference_mode()
    def next_band(self, rows: int) -> Tensor:
        """Return the labels (rows, width) uint8 of the first `rows` rows, and go on to the next row of tiles."""
        if self._sums is None:
            return torch.zeros(rows, self._grid.width, dtype=torch.uint8, device=self.device)
        labels = first_of_largest(self._sums[None, :, :rows], overwrite=True)[0]
        carried, step = self._grid.tile_px - self._grid.step, self._grid.step
        for sums in self._sums:
            sums[:carried] = sums[step:].clone()  # a copy, since both overlap where tiles do by more than a half
            sums[carried:] = 0
        return labels
