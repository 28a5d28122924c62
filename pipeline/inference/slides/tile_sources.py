# SPDX-License-Identifier: Apache-2.0
"""Where tiles come from, an image in memory or a slide on disk, and reading them ahead of the network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from pipeline.data.slides.base import Slide, Unreadable
from pipeline.data.slides.pictures import COLOUR, GREY, to_grey
from pipeline.errors import InputError
from pipeline.inference.slides.tile_grid import TileGrid, mirrored

T = TypeVar("T")

# A pixel of the thumbnail is an average; a tile is left unread only if it is brighter by more than noise.
_GLASS_MARGIN = 10


class TileSource(Protocol):
    """An image of `height` x `width` pixels whose regions can be had, as tensors on `device`."""

    height: int
    width: int
    name: str
    device: torch.device

    def region(self, top: int, left: int, height: int, width: int) -> Tensor:
        """Return a region inside the image as (C, height, width), raw values."""

    def unreadable(self) -> list[Unreadable]:
        """Return the parts that are known to be unreadable so far."""


class TensorSource:
    """An image (C, H, W) in memory."""

    name = "the image"

    def __init__(self, image: Tensor) -> None:
        self._image, self.device = image, image.device
        self.height, self.width = image.shape[-2:]

    def region(self, top: int, left: int, height: int, width: int) -> Tensor:
        """Return the region (C, height, width) as a view."""
        return self._image[:, top : top + height, left : left + width]

    def unreadable(self) -> list[Unreadable]:
        """Return nothing."""
        return []


class SlideSource:
    """A slide, in the colours that a network of `channels` (1 or 3) takes."""

    device = torch.device("cpu")

    def __init__(self, slide: Slide, channels: int) -> None:
        self._slide, self._grey = slide, channels == GREY
        self.height, self.width, self.name = slide.height, slide.width, str(slide.path)

    def region(self, top: int, left: int, height: int, width: int) -> Tensor:
        """Return the region (C, height, width), read from the file."""
        pixels = self._slide.read(top, left, height, width)
        pixels = to_grey(pixels) if self._grey else pixels
        return torch.from_numpy(
            pixels.transpose(2, 0, 1).copy()
        )  # torch warns of the read-only arrays that Pillow gives

    def unreadable(self) -> list[Unreadable]:
        """Return the damaged parts of level 0; those of smaller levels leave the labels as they are."""
        return [part for part in self._slide.unreadable if part.level == 0]


def channels_of(network: Any) -> int:
    """Return the `in_channels` that a network has, also inside the wrapper of distributed training; 3 without any.

    Raises `InputError` for a number that slides do not have.
    """
    if isinstance(network, nn.parallel.DistributedDataParallel | nn.DataParallel):
        network = network.module
    channels = getattr(network, "in_channels", COLOUR)
    if channels not in (GREY, COLOUR):
        raise InputError(f"the network takes {channels} channels, a slide has 3 or 1 (grey); choose another checkpoint")
    return channels


def tile_of(source: TileSource, top: int, left: int, tile_px: int) -> Tensor:
    """Return the tile (C, tile_px, tile_px) at a place, mirrored where it reaches beyond the border."""
    first_row, rows, row_order = mirrored(top, tile_px, source.height)
    first_column, columns, column_order = mirrored(left, tile_px, source.width)
    tile = source.region(first_row, first_column, rows, columns)
    if row_order is not None:
        tile = tile[:, torch.from_numpy(row_order)]
    if column_order is not None:
        tile = tile[:, :, torch.from_numpy(column_order)]
    return tile


def find_glass_tiles(thumbnail: np.ndarray, grid: TileGrid, background: float) -> np.ndarray:
    """Return for each tile (rows, columns) whether a thumbnail (h, w, 3) shows that nothing but glass is there.

    All the thumbnail's pixels on the tile and next to it must be brighter than `background` in all channels, and by
    more than a margin. A speck far smaller than a pixel of the thumbnail is not seen, and its tile counts as glass.
    """
    bright = thumbnail.min(axis=2) > background + _GLASS_MARGIN
    bright = ndimage.minimum_filter(bright, size=3)
    height, width = bright.shape
    rows = [_span(top, grid.tile_px, grid.height, height) for top in grid.tops]
    columns = [_span(left, grid.tile_px, grid.width, width) for left in grid.lefts]
    return np.array([[bool(bright[row, column].all()) for column in columns] for row in rows])


def _span(start: int, tile_px: int, length: int, small: int) -> slice:
    """Return the pixels of the thumbnail's axis of `small` that a tile touches."""
    end = min(start + tile_px, length)
    return slice(start * small // length, -(-end * small // length))


def prefetch(items: Iterable[T]) -> Iterator[T]:
    """Yield `items` in order while a thread already fetches the next one; its errors arrive at the consumer."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="tiles") as thread:
        coming = thread.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, iterator, end)
            yield item
