# SPDX-License-Identifier: Apache-2.0
"""Squares cut from large pictures: non-overlapping crops, each shrunk to the side that a network trains on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.data import resize_images, resize_labels


@dataclass(frozen=True)
class Tile:
    """A square of a picture: its row and column in the grid, image (S, S, C) uint8 and labels (S, S) uint8."""

    row: int
    column: int
    image: np.ndarray
    labels: np.ndarray


def cut_tiles(image: np.ndarray, labels: np.ndarray, crop_px: int, size: int) -> Iterator[Tile]:
    """Yield the crops of `crop_px` pixels that cover `image` (H, W, C) and `labels` (H, W), at `size` pixels a side.

    Crops begin at the upper left corner and do not overlap. Where a side is no multiple of `crop_px`, the last row or
    column goes on in the picture's mirror image, the edge itself not repeated, as the paper pads its test images.
    Images are resized as `resize_images` does it, rounded to uint8; labels as `resize_labels`. MONAI's `iter_patch`
    pads by a whole patch on every side before it cuts: several pictures in memory, and crops of padding alone.
    Raises `ValueError` for a picture smaller than one crop.
    """
    height, width = labels.shape
    if min(height, width) < crop_px:
        raise ValueError(f"a picture of {height} x {width} pixels holds no crop of {crop_px}")
    for row, top in enumerate(range(0, height, crop_px)):
        for column, left in enumerate(range(0, width, crop_px)):
            place = np.ix_(_mirrored(top, crop_px, height), _mirrored(left, crop_px, width))
            yield Tile(row, column, _resized(image[place], size), _resized_labels(labels[place], size))


def _mirrored(start: int, count: int, length: int) -> np.ndarray:
    """Return `count` positions from `start` on, which turn back at the last of `length`."""
    positions = np.arange(start, start + count)
    return np.minimum(positions, 2 * (length - 1) - positions)


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    channels_first = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    resized = resize_images(channels_first, (size, size)).round().clamp(0, 255).to(torch.uint8)
    return resized[0].permute(1, 2, 0).numpy()


def _resized_labels(labels: np.ndarray, size: int) -> np.ndarray:
    return resize_labels(torch.from_numpy(labels)[None, None], (size, size))[0, 0].numpy()
