# SPDX-License-Identifier: Apache-2.0
"""Distances between organ surfaces in mm: computed once for each organ, then reduced to HD95, HD and ASSD.

The definition: the surface of a mask is its voxels with at least one face neighbour (6 in 3D, 4 in 2D) outside the
mask; beyond the image frame is outside. Points are voxel centres in mm. `spacing_mm` is one length for each axis. Where
axes are not at right angles (a tilted gantry), it is a matrix whose columns are the steps in mm along each axis.
d(a, B) is the distance from a point of one surface to the nearest point of the other. HD95 is the larger of the two
directed 95th percentiles (linear interpolation), as in MONAI; medpy takes one percentile of both directions pooled,
which is often smaller, so it has its own function. If one mask is empty every distance is infinite; if both are, there
is none and every figure is NaN.

MONAI 1.6.1 turns a missed organ into NaN, leaves it out of the mean, and reports 0.0, a perfect score, if all are
missed; its float one-hot copies also make it slow. Hence this module.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import InputError

# A tree for one batch of queries. Splitting at the middle of the box, not at the median, also keeps far queries fast
# (two organs that do not touch: three times), since lattice points are evenly spread.
_TREE = {"leafsize": 32, "balanced_tree": False, "compact_nodes": False}


# Cosines of the angles between axes up to this are what float32 affines leave of right angles.
_RIGHT_ANGLE = 1e-5

Spacing = Sequence[float] | Sequence[Sequence[float]] | np.ndarray


@dataclass(frozen=True)
class SurfaceDistances:
    """Distance of every surface voxel to the other surface, in mm, in no particular order.

    `prediction_to_label_mm`: (n,) float64, one for each surface voxel of the prediction; `label_to_prediction_mm`: (m,)
    for those of the label. Where one mask is empty its array is empty and the other is all inf.
    """

    prediction_to_label_mm: np.ndarray
    label_to_prediction_mm: np.ndarray

    @property
    def directed_mm(self) -> tuple[np.ndarray, np.ndarray]:
        """Distances of both directions, (n,) from prediction to label and (m,) from label to prediction."""
        return self.prediction_to_label_mm, self.label_to_prediction_mm

    @property
    def pooled_mm(self) -> np.ndarray:
        """Distances of both directions in one array, (n + m,)."""
        return np.concatenate(self.directed_mm)

    def value_if_empty(self) -> float | None:
        """Return NaN if both masks are empty, inf if one is, None if neither is."""
        empty = [side.size == 0 for side in self.directed_mm]
        return np.nan if all(empty) else np.inf if any(empty) else None


def surface_distances(prediction: np.ndarray, label: np.ndarray, spacing_mm: Spacing) -> SurfaceDistances:
    """Measure the distances between the surfaces of two masks.

    `prediction` and `label` are boolean arrays of one shape, 2D or 3D; `spacing_mm` has one length or one
    column for each axis, in their order. A volume of one slice is measured as the 2D image that it is: taken as 3D,
    every voxel of it would touch the frame. Raises `InputError` for unequal shapes, other types, and spacings as
    `check_spacing` does.
    """
    spacing = check_spacing(spacing_mm, np.ndim(label))
    for name, mask in (("prediction", prediction), ("label", label)):
        if mask.dtype != bool:
            raise InputError(f"{name} is {mask.dtype}; surfaces are measured between boolean masks")
    if prediction.shape != label.shape:
        raise InputError(f"prediction has the shape {prediction.shape}, label {label.shape}; they must be equal")
    prediction, label, spacing = _as_image(prediction, label, spacing)
    box = _bounding_box(prediction | label)
    return _distances_in_box(prediction[box], label[box], spacing)


def organ_surface_distances(
    prediction: np.ndarray, label: np.ndarray, organs: Collection[int], spacing_mm: Spacing
) -> Iterator[tuple[int, SurfaceDistances]]:
    """Yield `(organ, SurfaceDistances)` for each of the label values `organs`, in their order.

    `prediction` and `label` are unsigned integer label maps of one shape, 2D or 3D. All boxes are found in one pass
    over each map, and only the box of an organ is looked at again; no whole volume is copied.
    """
    spacing = check_spacing(spacing_mm, label.ndim)
    prediction, label, spacing = _as_image(prediction, label, spacing)
    boxes = _organ_boxes(prediction, label, max(organs, default=0))
    nothing = (slice(0, 0),) * label.ndim
    for organ in organs:
        box = boxes.get(organ, nothing)
        yield organ, _distances_in_box(prediction[box] == organ, label[box] == organ, spacing)


def hausdorff_mm(distances: SurfaceDistances, percentile: float = 100.0) -> float:
    """Return the larger of the two directed percentiles in mm; 100 gives the Hausdorff distance itself."""
    empty = distances.value_if_empty()
    return empty if empty is not None else float(max(np.percentile(side, percentile) for side in distances.directed_mm))


def hd95_mm(distances: SurfaceDistances) -> float:
    """Return HD95 in mm by this project's definition; inf where one side is empty, NaN where both are."""
    return hausdorff_mm(distances, 95.0)


def hd95_pooled_mm(distances: SurfaceDistances) -> float:
    """Return one 95th percentile over both directions in mm, as in medpy and so in the published Synapse figures."""
    empty = distances.value_if_empty()
    return empty if empty is not None else float(np.percentile(distances.pooled_mm, 95.0))


def assd_mm(distances: SurfaceDistances) -> float:
    """Return the average symmetric surface distance in mm: the mean over all surface voxels of both sides."""
    empty = distances.value_if_empty()
    return empty if empty is not None else float(distances.pooled_mm.mean())


def diagonal_mm(shape: Sequence[int], spacing_mm: Spacing) -> float:
    """Return the longest diagonal of a volume in mm, edge to edge: no two voxels lie farther apart."""
    corners = np.stack(np.meshgrid(*((-0.5, 0.5),) * len(shape)), axis=-1).reshape(-1, len(shape))
    ends = _in_mm(corners * np.asarray(shape), check_spacing(spacing_mm, len(shape)))
    return float(2 * np.linalg.norm(ends, axis=1).max())


def voxel_mm3(spacing_mm: Spacing) -> float:
    """Return the volume of a voxel of three axes in mm3."""
    spacing = check_spacing(spacing_mm, 3)
    return float(np.prod(spacing) if spacing.ndim == 1 else abs(np.linalg.det(spacing)))


def surface_voxels(mask: np.ndarray) -> np.ndarray:
    """Return the voxels of a boolean mask that have a face neighbour outside it, as a boolean array of its shape.

    Voxels beyond the frame are outside.
    """
    padded = np.pad(mask, 1)
    inside = mask.copy()
    for axis in range(mask.ndim):
        for offset in (0, 2):
            window = [slice(1, -1)] * mask.ndim
            window[axis] = slice(offset, offset + mask.shape[axis])
            inside &= padded[tuple(window)]
    return mask & ~inside


def check_spacing(spacing_mm: Spacing, axes: int) -> np.ndarray:
    """Return one length for each axis, (axes,) float64, or the matrix of steps where axes meet at other angles.

    `spacing_mm`: lengths or a matrix, see the module. A matrix has a row for each coordinate in mm, such as the first
    three rows and columns of an affine. Raises `InputError` for lengths that are not positive and finite, and for axes
    in one plane.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.ndim == 2 and spacing.shape[0] >= spacing.shape[1] == axes and np.isfinite(spacing).all():
        lengths = np.linalg.norm(spacing, axis=0)
        if lengths.all():
            cosines = (spacing / lengths).T @ (spacing / lengths) - np.eye(axes)
            if np.abs(cosines).max() <= _RIGHT_ANGLE:
                return lengths
            if np.linalg.matrix_rank(spacing / lengths) == axes:
                return spacing
    elif spacing.shape == (axes,) and np.all(np.isfinite(spacing)) and np.all(spacing > 0):
        return spacing
    raise InputError(f"spacing_mm is {spacing.tolist()}; it needs {axes} positive lengths or steps, one an axis")


def _as_image(
    prediction: np.ndarray, label: np.ndarray, spacing: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Drop the one axis that a one-slice volume has too many, and bring Fortran-ordered arrays into C order; views."""
    if label.ndim == 3 and label.shape.count(1) == 1:
        axis = label.shape.index(1)
        prediction, label, spacing = prediction.squeeze(axis), label.squeeze(axis), np.delete(spacing, axis, axis=-1)
    if prediction.flags.f_contiguous and label.flags.f_contiguous:
        prediction, label, spacing = prediction.T, label.T, spacing[..., ::-1]
    return prediction, label, spacing


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Return the smallest box that holds all of `mask` (an empty box for an empty mask)."""
    box = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1) if filled.size else slice(0, 0))
    return tuple(box)


def _organ_boxes(prediction: np.ndarray, label: np.ndarray, largest: int) -> dict[int, tuple[slice, ...]]:
    """Return, for each value up to `largest` that occurs, the box around it in both maps together."""
    from scipy import ndimage  # here: --help must not wait for it

    boxes: dict[int, tuple[slice, ...]] = {}
    for labels in (prediction, label):
        # max_label=0 would mean "find the maximum"
        for organ, box in enumerate(ndimage.find_objects(labels, max_label=max(largest, 1)), start=1):
            if box is not None:
                boxes[organ] = _union(boxes[organ], box) if organ in boxes else box
    return boxes


def _union(first: tuple[slice, ...], second: tuple[slice, ...]) -> tuple[slice, ...]:
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(first, second, strict=True))


def _distances_in_box(prediction: np.ndarray, label: np.ndarray, spacing: np.ndarray) -> SurfaceDistances:
    """Measure two masks inside the box of their union: all voxels beyond it are outside of both."""
    surface_prediction, surface_label = surface_voxels(prediction), surface_voxels(label)
    return SurfaceDistances(
        prediction_to_label_mm=_nearest_distances(surface_prediction, surface_label, spacing),
        label_to_prediction_mm=_nearest_distances(surface_label, surface_prediction, spacing),
    )


def _nearest_distances(surface: np.ndarray, target: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return the distance of each voxel of `surface` to the nearest of `target`: (n,) mm, inf if `target` is empty."""
    from scipy.spatial import cKDTree  # here: --help must not wait for it

    distances = np.zeros(np.count_nonzero(surface))
    if not target.any():
        distances.fill(np.inf)
        return distances
    # Where the surfaces coincide the distance is 0; good predictions have many such voxels, and they need no search.
    apart = _points_mm(surface & ~target, spacing)
    if len(apart):
        distances[: len(apart)] = cKDTree(_points_mm(target, spacing), **_TREE).query(apart)[0]
    return distances


def _points_mm(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return the centres of the voxels of `mask` as (n, axes) float64 in mm."""
    indices = np.unravel_index(np.flatnonzero(mask), mask.shape)
    return _in_mm(np.stack(indices, axis=1), spacing)


def _in_mm(indices: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return places (n, axes) in steps of the grid as (n, coordinates) in mm."""
    return indices * spacing if spacing.ndim == 1 else indices @ spacing.T
