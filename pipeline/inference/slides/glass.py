# SPDX-License-Identifier: Apache-2.0
"""Whether a tile is glass (empty background), in most cases without resizing it."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from pipeline.data.samples.slices import resize_images

_ROUNDING = 0.01  # of resized values from 0 to 255; far more than float32 has


def is_glass(tile: Tensor, size: int, background: float) -> bool:
    """Tell whether all pixels of a tile (C, S, S) of raw values, resized to `size`, are brighter than `background`.

    A pixel of the resized tile is a weighted mean of the pixels around its place. So a tile without any dark pixel is
    glass at any size. A tile with a dark square so large that it holds all pixels of such a mean is not. The tile is
    resized only in the cases between these two.
    """
    tile = tile.float()
    if float(tile.amin()) > background + _ROUNDING:
        return True
    side = _side_that_holds_a_mean(tile.shape[-1], size)
    if side <= tile.shape[-1] and float(F.max_pool2d(tile[None], side).amin()) < background - _ROUNDING:
        return False
    return float(resize_images(tile[None], (size, size)).amin()) > background


def _side_that_holds_a_mean(length: int, size: int) -> int:
    """Return a side such that any such square holds all pixels that some pixel of the resized tile is made of."""
    # A mean reaches one step (the distance between resized pixels) to either side, and the next mean is one step on.
    step = max(1.0, length / size)
    return math.ceil(3 * step) + 2
