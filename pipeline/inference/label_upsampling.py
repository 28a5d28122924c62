# SPDX-License-Identifier: Apache-2.0
"""Classes at another size than the logits, on a CPU without interpolating all logits.

There the logits are interpolated near borders between classes alone (`pipeline.runtimes.resampling`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.runtimes.resampling import first_of_largest as first_of_largest_in_array
from pipeline.runtimes.resampling import labels_from_cells, mixed_cells

# From this share of mixed cells on, for each class, interpolating everything takes less time than picking them (two
# cores, torch 2.13): 7 % for two classes, 31 % for nine.
_DENSE_FROM_PER_CLASS = 0.035


def resized_classes(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the argmax (B, H, W) uint8 over classes of `logits`, interpolated bilinearly to `size` (H, W).

    The classes are those of `torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)`. They
    may differ only where the two largest interpolated logits are equal within float32 rounding.

    Args:
        logits: (B, K, h, w) float32, finite, of at most 256 classes.
        size: height and width (H, W) of the result in pixels.
    """
    logits = logits.contiguous()
    if tuple(logits.shape[-2:]) == tuple(size):
        return first_of_largest(logits)
    if logits.device.type != "cpu":  # there interpolation costs little, and picking cells would wait for the device
        return _interpolated_classes(logits, size)
    numbers = logits.detach().numpy()
    classes = first_of_largest_in_array(numbers)
    mixed = mixed_cells(classes)
    if np.count_nonzero(mixed) > _DENSE_FROM_PER_CLASS * logits.shape[1] * mixed.size:
        return _interpolated_classes(logits, size)
    return torch.from_numpy(labels_from_cells(numbers, classes, mixed, size))


def first_of_largest(logits: Tensor, overwrite: bool = False) -> Tensor:
    """Return the argmax (B, H, W) uint8 over classes of `logits` (B, K, H, W), the first of equals.

    It goes class by class: on a CPU, torch's argmax takes 40 times as long, and its max 4 times, with 8 bytes a pixel.
    `overwrite` saves the memory of one map; the logits of class 0 are then replaced by the maximum.
    """
    best = logits[:, 0] if overwrite else logits[:, 0].clone()
    labels = torch.zeros(best.shape, dtype=torch.uint8, device=logits.device)
    for value in range(1, logits.shape[1]):
        labels.masked_fill_(logits[:, value] > best, value)
        torch.maximum(best, logits[:, value], out=best)
    return labels


def _interpolated_classes(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return first_of_largest(F.interpolate(logits, size=size, mode="bilinear", align_corners=False), overwrite=True)
