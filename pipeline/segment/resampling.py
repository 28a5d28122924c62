# SPDX-License-Identifier: Apache-2.0
"""Slices to the training size and logits back to labels, as torch does both, in numpy.

Torch's bilinear interpolation works along each axis by itself. Smoothed shrinking is then a product with one matrix for
each axis; and the label between four pixels that agree is theirs, so only borders between organs need arithmetic.
"""

from __future__ import annotations

import functools

import numpy as np

_PIXELS_AT_ONCE = 1 << 16  # of borders: bounds the memory for their logits


def resize_images(images: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    """Return `images` (N, H, W) float32 at `sides` (h, w), as `pipeline.data.resize_images` does it to 1e-6."""
    for axis, side in ((2, sides[1]), (1, sides[0])):  # torch's order
        if images.shape[axis] != side:
            weights = resize_weights(images.shape[axis], side)
            images = images @ weights.T if axis == 2 else weights @ images
    return images


@functools.lru_cache(maxsize=16)
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

    Equals the class of the largest interpolated logit. Weights are not negative and sum to 1, so the class of four
    pixels that agree is the largest between them too; the logits are interpolated where they differ.
    """
    classes = logits.argmax(axis=1).astype(np.uint8)  # a network has 256 classes at most
    if classes.shape[1:] == tuple(sides):
        return classes
    top, bottom, down = _neighbours(classes.shape[1], sides[0])
    left, right, across = _neighbours(classes.shape[2], sides[1])
    upper, lower = classes[:, top], classes[:, bottom]
    labels = upper[:, :, left]
    agree = (labels == upper[:, :, right]) & (labels == lower[:, :, left]) & (labels == lower[:, :, right])
    image, row, column = np.nonzero(~agree)
    for start in range(0, len(image), _PIXELS_AT_ONCE):
        chosen = slice(start, start + _PIXELS_AT_ONCE)
        n, y, x = image[chosen], row[chosen], column[chosen]
        y_weight, x_weight = down[y, None], across[x, None]
        above = _between(logits[n, :, top[y], left[x]], logits[n, :, top[y], right[x]], x_weight)
        below = _between(logits[n, :, bottom[y], left[x]], logits[n, :, bottom[y], right[x]], x_weight)
        labels[n, y, x] = _between(above, below, y_weight).argmax(axis=1)
    return labels


def _between(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return (1 - weight) * first + weight * second


def _neighbours(length: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each target pixel the source pixels before and after its centre, and the weight of the one after."""
    place = (np.arange(target, dtype=np.float32) + 0.5) * np.float32(length / target) - 0.5
    place = np.maximum(place, 0).astype(np.float32)
    before = np.minimum(place.astype(np.int64), length - 1)
    return before, np.minimum(before + 1, length - 1), (place - before).astype(np.float32)
