# SPDX-License-Identifier: Apache-2.0
"""Shapes by their distance in mm, painted over one another in Hounsfield units with soft edges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Point = Sequence[float]

# Any distance beyond an edge is as good as another: shapes are only computed near themselves.
_FAR_MM = 60.0
# How far a grid's deformation may carry a shape out of its own box.
_MARGIN_MM = 28.0
# Mean square of the weights of a cubic B-spline; they shrink the deviation of what they blend.
_SPLINE_VARIANCE = 151 / 315


class Grid:
    """Voxel positions in mm, moved by a smooth deformation, so that what is drawn at them is deformed."""

    def __init__(self, axes: Sequence[np.ndarray]) -> None:
        self.axes = [np.asarray(axis, dtype=np.float32) for axis in axes]
        self.points = np.stack(np.meshgrid(*self.axes, indexing="ij"))
        self.shape: tuple[int, ...] = self.points.shape[1:]

    def deform(self, shift_mm: np.ndarray) -> None:
        """Move all positions by `shift_mm` (3, X, Y, Z), well below the margin of 28 mm."""
        self.points += np.clip(shift_mm, -_MARGIN_MM + 4, _MARGIN_MM - 4)

    def _bounding_box(self, low: np.ndarray, high: np.ndarray) -> tuple[slice, ...]:
        """Return the part of the grid where a shape between two corners can be near."""
        return tuple(
            slice(*np.searchsorted(axis, (start - _MARGIN_MM, end + _MARGIN_MM)))
            for axis, start, end in zip(self.axes, low, high, strict=True)
        )

    def ellipsoid(self, centre: Point, radii: Point, turn_degrees: Point = (0, 0, 0)) -> np.ndarray:
        """Return the distance in mm (negative inside) from an ellipsoid; exact along its axes, 60 far away.

        `turn_degrees`: rotations about x, y and z, in this order.
        """
        is_turned = any(turn_degrees)
        extent = np.full(3, max(radii)) if is_turned else np.asarray(radii)
        part = self._bounding_box(np.asarray(centre) - extent, np.asarray(centre) + extent)
        away = self.points[(slice(None), *part)] - _column(centre)
        if is_turned:
            away = np.tensordot(_rotation(turn_degrees).T, away, axes=1)
        length = np.sqrt((away**2).sum(0))
        relative = np.sqrt(((away / _column(radii)) ** 2).sum(0))
        distance = np.full(self.shape, _FAR_MM, dtype=np.float32)
        # On the ray from the centre the surface lies at length / relative.
        on_ray = length * (1 - 1 / np.maximum(relative, 1e-3))
        distance[part] = np.where(relative < 1e-3, -min(radii), on_ray)
        return distance

    def tube(self, path: Sequence[Point], radii: Sequence[float], steps: int = 24) -> np.ndarray:
        """Return the distance in mm from a tube along `path`, smooth, with one radius a path point; 60 far away."""
        knots, fine = np.linspace(0, 1, len(path)), np.linspace(0, 1, steps)
        line = np.stack([_smooth(np.interp(fine, knots, axis)) for axis in np.asarray(path, float).T], axis=1)
        widths = _smooth(np.interp(fine, knots, radii))
        distance = np.full(self.shape, _FAR_MM, dtype=np.float32)
        for centre, width in zip(line, widths, strict=True):
            part = self._bounding_box(centre - width, centre + width)
            away = self.points[(slice(None), *part)] - _column(centre)
            np.minimum(distance[part], np.sqrt((away**2).sum(0)) - np.float32(width), out=distance[part])
        return distance


def smooth_noise(random: np.random.Generator, shape: tuple[int, ...], blobs: tuple[int, ...]) -> np.ndarray:
    """Return noise of mean 0 and deviation 1 that varies over so many blobs along each axis (cubic B-splines)."""
    noise = random.standard_normal([count + 3 for count in blobs]).astype(np.float32)
    for side, count in zip(shape, blobs, strict=True):
        # Each product consumes the first axis and appends its fine one: after three the order is restored.
        noise = np.tensordot(noise, _spline_weights(side, count), axes=(0, 1))
    return noise * np.float32(_SPLINE_VARIANCE**-1.5)


def _spline_weights(side: int, intervals: int) -> np.ndarray:
    """Return (side, intervals + 3) weights of a uniform cubic B-spline over `intervals` intervals."""
    position = np.linspace(0, intervals, side, endpoint=False)
    distance = np.abs(position[:, None] + 1 - np.arange(intervals + 3)[None])
    inner = 2 / 3 - distance**2 + distance**3 / 2
    outer = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, inner, outer).astype(np.float32)


class Canvas:
    """HU and labels of one volume; what is painted later covers what was painted before."""

    def __init__(self, shape: tuple[int, ...], softness_mm: float) -> None:
        self.hu = np.full(shape, -1000.0, dtype=np.float32)
        self.labels = np.zeros(shape, dtype=np.uint8)
        self._softness_mm = np.float32(softness_mm)

    def cover(self, distance: np.ndarray) -> np.ndarray:
        """Return how much of each voxel lies inside, 0..1: edges blend over the softness, as voxels do."""
        return np.clip(0.5 - distance / self._softness_mm, 0.0, 1.0)

    def paint(
        self, distance: np.ndarray, hu: float | np.ndarray, label: int = 0, within: np.ndarray | None = None
    ) -> None:
        """Lay tissue of `hu` over all inside `distance` (and in the part `within`, 0..1), and label it."""
        cover = self.cover(distance)
        if within is not None:
            cover *= within
        self.hu += cover * (hu - self.hu)
        self.labels[cover > 0.5] = label

    def tint(self, distance: np.ndarray, hu: float | np.ndarray, within: np.ndarray) -> None:
        """Change the HU inside `distance` and `within`, and leave the labels."""
        self.hu += self.cover(distance) * within * (hu - self.hu)


def _column(values: Point) -> np.ndarray:
    return np.asarray(values, dtype=np.float32).reshape(3, 1, 1, 1)


def _smooth(values: np.ndarray) -> np.ndarray:
    from scipy import ndimage  # here: --help must not wait for it

    return ndimage.gaussian_filter1d(values, 1.5, mode="nearest")


def _rotation(degrees: Point) -> np.ndarray:
    matrix = np.eye(3, dtype=np.float32)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        turn = np.eye(3, dtype=np.float32)
        i, j = (other for other in range(3) if other != axis)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix
