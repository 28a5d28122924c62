# SPDX-License-Identifier: Apache-2.0
"""A 2D network over overlapping tiles of a slide, labels first.

MONAI's classes for slides (`SlidingPatchWSIDataset`, `SlidingWindowInferer`, `PatchInferer` with `AvgMerger`) add up
the float logits of all classes for the whole slide, 80 GB for two classes of 100,000 x 100,000 pixels, and the weights
too. Here memory holds the logits of one row of tiles at a time; pixels whose tiles are all done become labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.networks.utils import eval_mode
from torch import Tensor

from pipeline.data.preprocessing import Preprocessing, preprocessing_of
from pipeline.data.slides.base import UNREADABLE, Slide, Unreadable
from pipeline.errors import InputError
from pipeline.inference.logits import LogitsAtTrainingSize, Network, check_finite, device_of
from pipeline.inference.slides.glass import is_glass
from pipeline.inference.slides.tile_grid import BandBlender, TileGrid
from pipeline.inference.slides.tile_sources import (
    SlideSource,
    TensorSource,
    TileSource,
    channels_of,
    find_glass_tiles,
    prefetch,
    tile_of,
)
from pipeline.networks import SavedModel

THUMBNAIL_PX = 2048
_MOST_CLASSES = 255  # label maps are uint8, and 255 says that the slide could not be read there


class TileInferer(Inferer):
    """Segments images (B, C, H, W) of raw values 0..255 into labels (B, 1, H, W) uint8, and slides band by band.

    The network learned from squares of `tile_px` pixels of the slide, resized to `size`. A regular grid of such tiles
    begins at the top left; those at the right and bottom are mirrored beyond the border. Each is preprocessed and
    resized as in training. Its logits are brought back to `tile_px` (bilinear) and added to its neighbours', with
    weights that fall off where tiles overlap. Then the class is chosen. The sums take about K * `tile_px` * width * 4
    bytes for K classes on the network's device: 0.8 GB for two classes and a slide 100,000 pixels wide.

    Args:
        size: side in pixels of the square images that the network was trained on.
        tile_px: pixels of the slide along this side.
        preprocessing: that of the training tiles.
        overlap: share of a tile's side that the next one covers again, from 0 to below 1.
        tiles_per_batch: how many tiles the network sees at once; it does not change the result.
        background: a tile whose pixels, at `size`, are brighter than this in all channels is glass: the network does
            not run, and pixels that no other tile covers get label 0. For slides, a thumbnail first shows which tiles
            need not be read at all; it misses specks far smaller than its pixels. None runs every tile.
        amp_dtype: "bfloat16" or "float16" to run the network under autocast, None for full precision.

    For a `MetaTensor` the result is a `MetaTensor` with the same metadata. A slide is read in grey or RGB, as the
    network's `in_channels` requires. Raises `InputError` for an image smaller than a tile and for logits that are not
    finite.
    """

    def __init__(
        self,
        size: int,
        tile_px: int,
        preprocessing: Preprocessing,
        overlap: float = 0.25,
        tiles_per_batch: int = 8,
        background: float | None = 220,
        amp_dtype: str | torch.dtype | None = None,
    ) -> None:
        if min(size, tile_px, tiles_per_batch) < 1:
            raise InputError(f"size {size}, tile_px {tile_px} and tiles_per_batch {tiles_per_batch} must be 1 or more")
        if not 0 <= overlap < 1:
            raise InputError(f"overlap is {overlap}; give a share of a tile's side from 0 to below 1, such as 0.25")
        self.size, self.tile_px, self.tiles_per_batch = size, tile_px, tiles_per_batch
        self.step = max(1, round(tile_px * (1 - overlap)))
        self.preprocessing, self.background = preprocessing, background
        self._logits = LogitsAtTrainingSize(size, amp_dtype, _MOST_CLASSES)

    def __call__(self, inputs: Tensor | Slide, network: Network, *args: Any, **kwargs: Any) -> Tensor | LabelBands:
        """Return the labels (B, 1, H, W) of images (B, C, H, W), or those of a slide as `LabelBands`, not yet computed.

        Further arguments go to the network.
        """
        if isinstance(inputs, Slide):
            return LabelBands(self, inputs, network, *args, **kwargs)
        if inputs.ndim != 4:
            raise ValueError(f"inputs must be (B, C, H, W) or a Slide, not {tuple(inputs.shape)}")
        images = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        labels = torch.empty((len(images), 1, *images.shape[-2:]), dtype=torch.uint8, device=images.device)
        for image, target in zip(images, labels[:, 0], strict=True):
            top = 0
            for band in self.iterate_bands(TensorSource(image), network, args, kwargs):
                target[top : top + len(band.labels)] = band.labels
                top += len(band.labels)
        return MetaTensor(labels).copy_meta_from(inputs) if isinstance(inputs, MetaTensor) else labels

    def bands(self, slide: Slide, network: Network) -> Iterator[np.ndarray]:
        """Return the bands (rows, width) uint8 of a slide's labels from the top down; see `LabelBands`."""
        return iter(self(slide, network))

    def grid(self, source: TileSource | Slide, name: str = "the image") -> TileGrid:
        """Return the tiles of an image; `InputError` where it is smaller than one."""
        if min(source.height, source.width) < self.tile_px:
            raise InputError(
                f"{name} has {source.width} x {source.height} pixels, fewer than the {self.tile_px} x {self.tile_px} "
                "of a tile of the training data; give more of the slide, or a model trained on smaller tiles"
            )
        return TileGrid(source.height, source.width, self.tile_px, self.step)

    def iterate_bands(
        self,
        source: TileSource,
        network: Network,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        skipped: np.ndarray | None = None,
    ) -> Iterator[Band]:
        """Yield the bands of an image from the top down; `skipped` marks the tiles (rows, columns) to pass over."""
        grid = self.grid(source, source.name)
        blender = BandBlender(grid, device_of(network, source.device))
        tiles_run = 0
        with closing(prefetch(self._batches(source, grid, skipped))) as batches:
            for batch in batches:
                tiles_run += self._add(blender, batch, network, args, kwargs or {})
                if batch.ends_row:
                    yield Band(blender.next_band(grid.band(batch.row)[1]), tiles_run, batch.unreadable)
                    tiles_run = 0

    def _batches(self, source: TileSource, grid: TileGrid, skipped: np.ndarray | None) -> Iterator[_Batch]:
        """Yield the tiles row by row, at least one batch a row, if only an empty one."""
        for row, top in enumerate(grid.tops):
            lefts = [left for column, left in enumerate(grid.lefts) if skipped is None or not skipped[row, column]]
            starts = range(0, max(1, len(lefts)), self.tiles_per_batch)
            for start in starts:
                chosen = lefts[start : start + self.tiles_per_batch]
                tiles = [tile_of(source, top, left, self.tile_px) for left in chosen]
                yield _Batch(row, top, chosen, tiles, source.unreadable(), ends_row=start == starts[-1])

    @torch.inference_mode()
    def _add(
        self, blender: BandBlender, batch: _Batch, network: Network, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> int:
        """Run the network on the tiles of a batch that are not glass, add its logits, and return how many these are."""
        tiles = [tile.to(blender.device) for tile in batch.tiles]
        kept = [index for index, tile in enumerate(tiles) if not self._skips(tile)]
        if not kept:
            return 0
        lefts = [batch.lefts[index] for index in kept]
        images = torch.stack([self.preprocessing.of_image(tiles[index]) for index in kept])
        logits = self._logits(images, network, *args, **kwargs)
        check_finite(logits, lambda index: f"the tile at x={lefts[index]}, y={batch.top}")
        for tile_logits, left in zip(logits, lefts, strict=True):
            blender.add(tile_logits, left)
        return len(kept)

    def _skips(self, tile: Tensor) -> bool:
        return self.background is not None and is_glass(tile, self.size, self.background)


class _Batch(NamedTuple):
    row: int
    top: int
    lefts: list[int]
    tiles: list[Tensor]
    unreadable: list[Unreadable]
    ends_row: bool


class Band(NamedTuple):
    """The labels (rows, width) uint8 of a row of tiles, how many of these were run, and what was unreadable by then."""

    labels: Tensor
    tiles_run: int
    unreadable: list[Unreadable]


@dataclass
class TileCounts:
    """How many tiles a slide has, and on how many of them the network has run; the rest was glass."""

    total: int = 0
    run: int = 0


class LabelBands:
    """The label map of a slide, computed while it is iterated: bands (rows, width) uint8 from the top down.

    The rows of all bands add up to the slide's height. Pixels that could not be read are `UNREADABLE`. Iterate it once,
    before the slide is closed; the network then runs in the mode, training or evaluation, that it has now.

    Attributes:
        slide: the slide.
        background: the brightness from which a pixel counts as glass, or None.
        tiles: counts, complete after the last band.

    Raises:
        InputError: while iterating, as `TileInferer` does and as the slide does.
    """

    def __init__(self, inferer: TileInferer, slide: Slide, network: Network, *args: Any, **kwargs: Any) -> None:
        self.slide, self.background, self.tiles = slide, inferer.background, TileCounts()
        self._inferer, self._network, self._args, self._kwargs = inferer, network, args, kwargs
        # An evaluator puts the network into evaluation mode for the time of the inferer's call alone.
        self._evaluates = not getattr(network, "training", False)
        self._thumbnail: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the label map in pixels."""
        return self.slide.height, self.slide.width

    @property
    def thumbnail(self) -> np.ndarray:
        """The slide as (h, w, 3) uint8 with at most `THUMBNAIL_PX` pixels a side, read once."""
        if self._thumbnail is None:
            self._thumbnail = self.slide.thumbnail(THUMBNAIL_PX)
        return self._thumbnail

    def __len__(self) -> int:
        """Return the number of bands."""
        return len(self._inferer.grid(self.slide, str(self.slide.path)).tops)

    def __iter__(self) -> Iterator[np.ndarray]:
        grid = self._inferer.grid(self.slide, str(self.slide.path))
        source = SlideSource(self.slide, channels_of(self._network))
        return self._bands(grid, source)

    def _bands(self, grid: TileGrid, source: SlideSource) -> Iterator[np.ndarray]:
        self.tiles = TileCounts(total=len(grid.tops) * len(grid.lefts))
        skipped = None if self.background is None else find_glass_tiles(self.thumbnail, grid, self.background)
        bands = self._inferer.iterate_bands(source, self._network, self._args, self._kwargs, skipped)
        for row in range(len(grid.tops)):
            # Not across the yield, so that the consumer's use of the network and of gradients is not affected.
            with eval_mode(self._network) if self._evaluates else nullcontext():
                band = next(bands)
            self.tiles.run += band.tiles_run
            yield _mark_unreadable(band, *grid.band(row))


def _mark_unreadable(band: Band, top: int, rows: int) -> np.ndarray:
    """Return the labels of a band with `UNREADABLE` where the slide could not be read."""
    labels = band.labels.cpu().numpy()
    for part in band.unreadable:
        first, last = max(part.top - top, 0), min(part.top + part.height - top, rows)
        if first < last:
            labels[first:last, part.left : part.left + part.width] = UNREADABLE
    return labels


def tile_inferer_of(
    model: SavedModel,
    overlap: float = 0.25,
    tiles_per_batch: int = 8,
    background: float | None = 220,
    amp_dtype: str | None = None,
) -> TileInferer:
    """Return the inferer with the size, tile and preprocessing that `model` was trained on.

    Raises `InputError` for a model of scans.
    """
    if model.tile_px is None:
        raise InputError("the checkpoint was trained on scans, not on slides; choose one trained on tiles of slides")
    preprocessing = preprocessing_of(model.preprocessing)
    return TileInferer(model.size, model.tile_px, preprocessing, overlap, tiles_per_batch, background, amp_dtype)
