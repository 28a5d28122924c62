# SPDX-License-Identifier: Apache-2.0
"""Slices to the training size and logits back to labels, as torch does both, in numpy.

Torch's bilinear interpolation works along each axis by itself, and a new pixel is the mean of few old ones. Between
four pixels of one class (a *cell*) the class is theirs, since the weights of bilinear interpolation are not negative.
So logits are interpolated in cells of more than one class alone: one to ten per cent of a trained network's.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


def resize_images(images: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    """Return `images` (N, H, W) float32 at `sides` (h, w), as `pipeline.data.resize_images` does it to 1e-6."""
    resized = np.empty((len(images), *sides), np.float32)
    for image, target in zip(images, resized, strict=True):  # one by one they stay in the processor's cache
        columns = _resize_rows(np.ascontiguousarray(image.T), sides[1])  # torch's order: the last axis first
        target[:] = _resize_rows(np.ascontiguousarray(columns.T), sides[0])
    return resized


def _resize_rows(image: np.ndarray, side: int) -> np.ndarray:
    """Return `image` (H, W) float32, contiguous, with `side` rows."""
    if len(image) == side:
        return image
    places, weights = _rows_below(len(image), side)
    resized = image.take(places[0], axis=0)
    resized *= weights[0]
    part = np.empty_like(resized)
    for place, weight in zip(places[1:], weights[1:], strict=True):
        image.take(place, axis=0, out=part, mode="clip")  # other modes copy once more
        part *= weight
        resized += part
    return resized


@functools.lru_cache(maxsize=16)
def _rows_below(length: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the source pixels (taps, target) of each target pixel, and their weights (taps, target, 1) float32."""
    weights = resize_weights(length, target)
    taps = int(np.count_nonzero(weights, axis=1).max())
    first = np.minimum(np.argmax(weights > 0, axis=1), length - taps)
    places = first + np.arange(taps)[:, None]
    return places, np.take_along_axis(weights, places.T, axis=1).T[..., None]


def resize_weights(length: int, target: int) -> np.ndarray:
    """Return the matrix (target, length) float32 of smoothed linear interpolation along an axis.

    A target pixel is the mean of the pixels below a triangle over its centre, as wide as two target pixels when it
    shrinks and as two source pixels when it grows; at the border the triangle is cut off and weighs 1 again. Every step
    is rounded to float32 as torch rounds it: exact weights would differ from torch's fifty times more.
    """
    one, half = np.float32(1), np.float32(0.5)
    scale = np.float32(length) / np.float32(target)
    centres = scale * (np.arange(target, dtype=np.float32) + half)
    distances = np.abs(np.arange(length, dtype=np.float32) - centres[:, None] + half) * (one / max(scale, one))
    weights = np.maximum(one - distances, 0)
    return weights / weights.sum(axis=1, keepdims=True)


def labels_at(logits: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    """Return the labels (N, H, W) uint8 of `logits` (N, K, h, w) float32, brought to `sides` (H, W) bilinearly.

    Equals the class of the largest interpolated logit, the first of equals, but where two logits are as near to each
    other as float32 rounds. `K` is 256 at most.
    """
    classes = first_of_largest(logits)
    if classes.shape[1:] == tuple(sides):
        return classes
    return labels_from_cells(logits, classes, mixed_cells(classes), sides)


def labels_from_cells(logits: np.ndarray, classes: np.ndarray, mixed: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    """Return the labels (N, H, W) uint8 at `sides`: interpolated in `mixed` cells, copied from `classes` elsewhere.

    Args:
        logits: (N, K, h, w) float32.
        classes: their classes (N, h, w) uint8.
        mixed: from `mixed_cells`, (N, h, w) bool.
        sides: height and width (H, W) in pixels.
    """
    rows, columns = (_axis(length, side) for length, side in zip(classes.shape[1:], sides, strict=True))
    labels = classes.take(columns.cells, axis=2).take(rows.cells, axis=1)
    image, top, left = np.nonzero(mixed)
    heights, widths = rows.counts[top], columns.counts[left]
    of_class = logits.transpose(1, 0, 2, 3).reshape(logits.shape[1], -1)
    for height, width in itertools.product(np.unique(heights), np.unique(widths)):
        chosen = np.flatnonzero((heights == height) & (widths == width))
        _fill(labels, of_class, image[chosen], (rows, top[chosen]), (columns, left[chosen]))
    return labels


def first_of_largest(logits: np.ndarray) -> np.ndarray:
    """Return the argmax (N, ...) uint8 over classes of `logits` (N, K, ...), the first of equals.

    Class by class it takes a fifth of the time of numpy's argmax.
    """
    best = logits[:, 0].copy()
    labels = np.zeros(best.shape, np.uint8)
    for value in range(1, logits.shape[1]):
        of_class = logits[:, value]
        better = (of_class > best).view(np.uint8)
        np.maximum(labels, better * np.uint8(value), out=labels)
        np.maximum(best, of_class, out=best)
    return labels


def mixed_cells(classes: np.ndarray) -> np.ndarray:
    """Tell (N, h, w) where a pixel of `classes` (N, h, w), its neighbours right, below and across aren't of one class.

    Beyond the last row and column the pixels repeat.
    """
    mixed = np.zeros(classes.shape, bool)
    across = classes[..., :-1] != classes[..., 1:]
    down = classes[:, :-1] != classes[:, 1:]
    mixed[..., :-1] |= across
    mixed[:, :-1, :-1] |= across[:, 1:]
    mixed[:, :-1] |= down
    mixed[:, :-1, :-1] |= down[..., 1:]
    return mixed


class _Axis(NamedTuple):
    """The pixels of an axis of the output, and the cells of the input that they lie in.

    Attributes:
        cells: for each pixel, the first of the two input pixels that it lies between.
        weights: for each pixel, the share of the second.
        begins, counts: for each cell, its first pixel and how many it has.
    """

    cells: np.ndarray
    weights: np.ndarray
    begins: np.ndarray
    counts: np.ndarray

    def pixels_of(self, cells: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the first pixel (M,) of each of M cells, the second, and so on; all have equally many."""
        for number in range(self.counts[cells].max(initial=0)):
            yield self.begins[cells] + number


@functools.lru_cache(maxsize=16)
def _axis(length: int, wanted: int) -> _Axis:
    """Return where `wanted` pixels lie among `length`: areas aligned, in the float32 steps that torch takes."""
    places = (np.float32(length) / np.float32(wanted)) * (np.arange(wanted, dtype=np.float32) + np.float32(0.5))
    places = np.maximum(places - np.float32(0.5), 0)
    cells = np.minimum(places.astype(np.int64), length - 1)
    counts = np.bincount(cells, minlength=length)
    return _Axis(cells, np.clip(places - cells.astype(np.float32), 0, 1), counts.cumsum() - counts, counts)


def _fill(
    labels: np.ndarray,
    logits: np.ndarray,
    image: np.ndarray,
    vertical: tuple[_Axis, np.ndarray],
    horizontal: tuple[_Axis, np.ndarray],
) -> None:
    """Write the classes of the interpolated logits (K, N * h * w) into `labels` (N, H, W), in M cells of one size.

    A cell is an image (M,), and along each axis the first of its two pixels (M,).
    """
    (rows, top), (columns, left) = vertical, horizontal
    height, width = len(rows.counts), len(columns.counts)
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    upper, lower = (
        [logits.take((image * height + y) * width + x, axis=1) for x in (left, right)] for y in (top, bottom)
    )
    for column in columns.pixels_of(left):
        above, below = (_between(*corners, columns.weights[column]) for corners in (upper, lower))  # (K, M)
        for row in rows.pixels_of(top):
            labels[image, row, column] = first_of_largest(_between(above, below, rows.weights[row])[None])[0]


def _between(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the weighted mean of two arrays (K, M), the second weighing `weight` (M,)."""
    between = second - first
    between *= weight
    between += first
    return between
