# SPDX-License-Identifier: Apache-2.0
"""The test protocol of the published gastric figures: the centres of overlapping crops, at the network's resolution.

The crops overlap, so that every scored pixel has context on all sides. Nothing is blended, since the centres of the
crops only touch. Neither prediction nor label returns to the image's own resolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor

from pipeline.data.preprocessing import Preprocessing
from pipeline.data.samples.slices import resize_labels
from pipeline.errors import InputError
from pipeline.inference.logits import LogitsAtTrainingSize, Network, check_finite, device_of

_MOST_CLASSES = 256  # label maps are uint8


class CentreCropInferer(Inferer):
    """Segments images (B, C, H, W) of raw values into the paper's label maps (B, 1, h, w) uint8.

    The image is mirrored by 3/8 of `tile_px` beyond each border. Crops of `tile_px` begin every quarter of that, which
    is `stride_px`: H // stride_px rows of W // stride_px crops. Each is preprocessed, resized to `size` and
    segmented; of its map only the central quarter of the rows and columns is kept, from 3/8 to 5/8 of `size`. These
    centres, placed edge to edge, are the result, h = size / 4 * (H // stride_px) high. So 1024, 256 and an image of
    2048 x 2048 give 8 x 8 centres of 64 x 64, a map of 512 x 512.

    Pixels that no centre covers are not scored: H mod stride_px rows at the bottom and W mod stride_px columns at the
    right, H * W - (H - H mod stride_px) * (W - W mod stride_px) pixels. `centres_of` treats the label in the same way.

    Args:
        size: side of the square images that the network was trained on, a multiple of 8.
        tile_px: pixels of the image that this side spans, a multiple of 8.
        preprocessing: what was done to the tiles of the training data.
        published_centre: keep the rows and columns one pixel before the central ones (95 to 158 of 256), as the
            published code does by mistake, in prediction and label alike.
        crops_per_batch: how many crops the network sees at once; it does not change the result.
        amp_dtype: "bfloat16" or "float16" to run the network under autocast, None for full precision.

    The result is a plain tensor: a `MetaTensor`'s affine would not hold for it. Raises `InputError` for sizes that are
    no multiples of 8, for an image smaller than `stride_px` and for logits that are not finite.
    """

    def __init__(
        self,
        size: int,
        tile_px: int,
        preprocessing: Preprocessing,
        published_centre: bool = False,
        crops_per_batch: int = 8,
        amp_dtype: str | torch.dtype | None = None,
    ) -> None:
        for name, value in (("size", size), ("tile_px", tile_px)):
            if value < 8 or value % 8:
                raise InputError(f"{name} is {value}; the paper's protocol needs a multiple of 8, or use protocol full")
        if crops_per_batch < 1:
            raise InputError(f"crops_per_batch {crops_per_batch} must be 1 or more")
        self.preprocessing = preprocessing
        self.size, self.tile_px, self.crops_per_batch = size, tile_px, crops_per_batch
        self.published_centre = published_centre
        self.stride_px, self._pad_px = tile_px // 4, 3 * tile_px // 8
        first = 3 * size // 8 - (1 if published_centre else 0)
        self._kept = slice(first, first + size // 4)
        self._logits = LogitsAtTrainingSize(size, amp_dtype, _MOST_CLASSES)

    @property
    def settings(self) -> dict[str, Any]:
        """What the figures depend on, for the summary of a report: JSON primitives."""
        return {
            "size": self.size,
            "tile_px": self.tile_px,
            "stride_px": self.stride_px,
            "first_kept_row": self._kept.start,
            "last_kept_row": self._kept.stop - 1,
            "published_centre": self.published_centre,
        }

    def __call__(self, inputs: Tensor, network: Network, *args: Any, **kwargs: Any) -> Tensor:
        """Return the labels (B, 1, h, w) of the centres of `inputs` (B, C, H, W).

        Further arguments go to the network.
        """
        images = _plain("inputs", inputs)
        with torch.inference_mode():
            return torch.stack([self._segment(image, network, args, kwargs) for image in images])

    def centres_of(self, labels: Tensor) -> Tensor:
        """Return the centres of label maps (B, 1, H, W), resized to nearest neighbours, as (B, 1, h, w).

        For an evaluator's `postprocessing`, as `Lambdad(keys="label", func=inferer.centres_of)` with decollate=False.
        """
        maps = _plain("labels", labels)
        return torch.stack([self._label_centres(image) for image in maps])

    def _segment(self, image: Tensor, network: Network, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Return the centres of one image (C, H, W) as (1, h, w) uint8, on the image's device."""
        device = device_of(network, image.device)
        centres = []
        for start, crops in self._batches(image):
            images = torch.stack([self.preprocessing.of_image(crop) for crop in crops.to(device)])
            logits = self._logits(images, network, *args, **kwargs)[..., self._kept, self._kept]
            check_finite(logits, lambda index, start=start: self._crop_location(image, start + index))
            # max gives the indices of argmax, the first of equals, in a sixth of the time on CPU (torch 2.13).
            centres.append(logits.max(dim=1, keepdim=True).indices.to(torch.uint8).to(image.device))
        return self._edge_to_edge(torch.cat(centres), image)

    def _label_centres(self, labels: Tensor) -> Tensor:
        size = (self.size, self.size)
        centres = [resize_labels(crops, size)[..., self._kept, self._kept] for _, crops in self._batches(labels)]
        return self._edge_to_edge(torch.cat(centres), labels)

    def _batches(self, image: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield the crops (N, C, tile_px, tile_px) of (C, H, W) row by row, each batch with the number of its first."""
        rows, columns = (_mirrored(length, self._pad_px).to(image.device) for length in image.shape[-2:])
        high, wide = self._crops(image)
        for start in range(0, high * wide, self.crops_per_batch):
            numbers = range(start, min(start + self.crops_per_batch, high * wide))
            yield start, torch.stack([self._crop(image, rows, columns, *divmod(number, wide)) for number in numbers])

    def _crop(self, image: Tensor, rows: Tensor, columns: Tensor, row: int, column: int) -> Tensor:
        """Return the crop in this row and column of crops; `rows` and `columns` index the mirrored image."""
        top, left = row * self.stride_px, column * self.stride_px
        return image[:, rows[top : top + self.tile_px, None], columns[left : left + self.tile_px]]

    def _crop_location(self, image: Tensor, number: int) -> str:
        """Return in words where a crop lies: the middle of its centre, in pixels of the image."""
        y, x = (index * self.stride_px + self.stride_px // 2 for index in divmod(number, self._crops(image)[1]))
        return f"the crop around x={x}, y={y}"

    def _crops(self, image: Tensor) -> tuple[int, int]:
        """Return how many crops there are in height and width."""
        height, width = image.shape[-2:]
        if min(height, width) < self.stride_px:
            raise InputError(
                f"an image of {width} x {height} pixels is smaller than the stride of {self.stride_px}, a quarter of "
                "tile_px, so that nothing would be scored; use protocol full"
            )
        return height // self.stride_px, width // self.stride_px

    def _edge_to_edge(self, centres: Tensor, image: Tensor) -> Tensor:
        """Place (N, 1, size/4, size/4) row by row into (1, h, w)."""
        high, wide = self._crops(image)
        side = self.size // 4
        return centres.reshape(high, wide, side, side).permute(0, 2, 1, 3).reshape(1, high * side, wide * side)


def _plain(name: str, images: Tensor) -> Tensor:
    if images.ndim != 4:
        raise ValueError(f"{name} must be (B, C, H, W), not {tuple(images.shape)}; an evaluator needs decollate=False")
    return images.as_tensor() if isinstance(images, MetaTensor) else images


def _mirrored(length: int, pad: int) -> Tensor:
    """Return which pixel of an axis each pixel of the mirrored axis shows: (length + 2 * pad,) int64.

    The border itself is not repeated, and an axis shorter than `pad` is mirrored again and again.
    """
    return torch.from_numpy(np.pad(np.arange(length), pad, mode="reflect"))
