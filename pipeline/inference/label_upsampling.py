# SPDX-License-Identifier: Apache-2.0
"""Classes at another size than the logits, without interpolating all logits.

Bilinear interpolation is a weighted mean of four neighbouring pixels (a cell). If all four have the same class, this
class has the largest logit at every point between them. So logits need interpolation only in cells with more than one
class, one to ten per cent of a trained network's. In all other cells the class is copied.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# From this share of mixed cells on, for each class, picking them takes longer than interpolating everything (CPU, torch
# 2.13): 5 % for two classes, 22 % for nine.
_DENSE_FROM_PER_CLASS = 0.025


class _Axis(NamedTuple):
    """The pixels of an axis of the output, and the cells of the input that they lie in.

    Attributes:
        cells: for each pixel, the first of the two input pixels that it lies between.
        weights: for each pixel, the share of the second.
        begins, counts: for each cell, its first pixel and how many it has.
    """

    cells: Tensor
    weights: Tensor
    begins: Tensor
    counts: Tensor


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
    classes = first_of_largest(logits)
    mixed = _mixed_cells(classes)
    if torch.count_nonzero(mixed) > _DENSE_FROM_PER_CLASS * logits.shape[1] * mixed.numel():
        return _interpolated_classes(logits, size)
    rows, columns = _axis(logits.shape[-2], size[0]), _axis(logits.shape[-1], size[1])
    labels = classes.index_select(2, columns.cells).index_select(1, rows.cells)
    _fill_mixed(labels, mixed, logits, rows, columns)
    return labels


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


def _mixed_cells(classes: Tensor) -> Tensor:
    """Tell (B, h, w) where a pixel and its neighbours to the right, below and across are not all of one class."""
    below = torch.cat([classes[:, 1:], classes[:, -1:]], dim=1)
    mixed = classes != below
    mixed[..., :-1] |= (classes[..., 1:] != classes[..., :-1]) | (below[..., 1:] != below[..., :-1])
    return mixed


def _axis(length: int, wanted: int) -> _Axis:
    """Return where `wanted` pixels lie among `length`: areas aligned, in the float32 steps that torch takes."""
    scale = torch.tensor(length, dtype=torch.float32) / wanted
    places = (scale * (torch.arange(wanted, dtype=torch.float32) + 0.5) - 0.5).clamp_(min=0)
    cells = places.long().clamp_(max=length - 1)
    counts = torch.bincount(cells, minlength=length)
    return _Axis(cells, (places - cells).clamp_(0, 1), counts.cumsum(0) - counts, counts)


def _fill_mixed(labels: Tensor, mixed: Tensor, logits: Tensor, rows: _Axis, columns: _Axis) -> None:
    """Write the classes of the interpolated logits into `labels` (B, H, W) in the cells that are `mixed` (B, h, w)."""
    read = (rows.counts > 0)[:, None] & (columns.counts > 0)  # shrinking passes over cells
    image, top, left = (mixed & read).nonzero(as_tuple=True)
    bottom, right = ((top + 1).clamp_(max=mixed.shape[1] - 1), (left + 1).clamp_(max=mixed.shape[2] - 1))
    pixels = logits.permute(0, 2, 3, 1)
    left_edge, right_edge = ((pixels[image, top, side], pixels[image, bottom, side]) for side in (left, right))
    for row in _pixels_of(rows, top):
        down = rows.weights[row, None]
        at_left, at_right = torch.lerp(*left_edge, down), torch.lerp(*right_edge, down)
        for column in _pixels_of(columns, left):
            interpolated = torch.lerp(at_left, at_right, columns.weights[column, None])
            labels[image, row, column] = interpolated.max(dim=1).indices.to(torch.uint8)


def _pixels_of(axis: _Axis, cells: Tensor) -> list[Tensor]:
    """Return the first pixel (N,) of each of N cells, the second, and so on; a cell with fewer repeats its last."""
    begins, counts = axis.begins[cells], axis.counts[cells]
    return [begins + (counts - 1).clamp(max=number) for number in range(int(axis.counts.max()))]
