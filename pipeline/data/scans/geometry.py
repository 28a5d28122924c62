# SPDX-License-Identifier: Apache-2.0
"""A volume and where its voxels lie: orientation, grids, and whether two grids are one.

Arrays are (x, y, z) as NIfTI stores them; an affine is the 4x4 matrix from voxel indices to mm in RAS (x to the
patient's right, y to the front, z to the head).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from pipeline.errors import InputError

# Files round their affines to float32; what differs by more is another grid.
POSITION_TOLERANCE_MM = 1e-3
ANGLE_TOLERANCE_RAD = 1e-4
# A voxel's volume relative to the product of its edges: below this the axes are practically in one plane.
_LEAST_RELATIVE_VOLUME = 1e-3
# Beyond these edges (mm) the header has likely mixed up its units; no clinical scan goes there.
_PLAUSIBLE_SPACING_MM = (0.05, 50.0)
# Beyond these it is damaged: a voxel of a metre, or one that no light microscope tells from its neighbour.
_POSSIBLE_SPACING_MM = (1e-4, 1e3)


@dataclass(frozen=True)
class Volume:
    """A scan or a label map with its place in the patient.

    `array`: (x, y, z), as stored. `affine`: (4, 4) float64, voxel to mm in RAS. `header`: the NIfTI header, None for
    other formats. `notes`: what was odd about the file but safe, one sentence each.
    """

    array: np.ndarray
    affine: np.ndarray
    path: Path
    header: nib.Nifti1Header | None = None
    notes: tuple[str, ...] = ()

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel edges along x, y and z of the array."""
        x, y, z = spacing_of(self.affine)
        return x, y, z

    @property
    def steps_mm(self) -> np.ndarray:
        """Steps in mm, (3, 3): column i is the vector (R, A, S) from one voxel to the next along array axis i."""
        return self.affine[:3, :3]


def spacing_of(affine: np.ndarray) -> tuple[float, ...]:
    """Return the length in mm of one step along each array axis, three for an affine (4, 4)."""
    return tuple(float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))


@np.errstate(over="ignore", invalid="ignore")  # of numbers whose squares are infinite: they are refused
def check_affine(path: Path, affine: np.ndarray, source: str) -> list[str]:
    """Refuse an affine that gives voxels no place or no size; return notes on what is odd about a usable one.

    `affine`: (4, 4), voxel indices to mm. `source`: where it was read ("sform", "space directions"), for messages.
    Raises `InputError`.
    """
    if not np.isfinite(affine).all():
        raise InputError(f"{path}: the {source} holds NaN or infinities; write a valid one, such as the scanner's")
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    if (edges == 0).any():
        raise InputError(f"{path}: the {source} gives voxels of {_edges(edges)} mm; write the true voxel size")
    if abs(np.linalg.det(affine[:3, :3] / edges)) < _LEAST_RELATIVE_VOLUME:
        raise InputError(f"{path}: the {source} is singular (its axes lie in one plane); write a valid one")
    if edges.min() < _POSSIBLE_SPACING_MM[0] or edges.max() > _POSSIBLE_SPACING_MM[1]:
        raise InputError(f"{path}: the {source} gives voxels of {_edges(edges)} mm; write the true voxel size")
    if edges.min() < _PLAUSIBLE_SPACING_MM[0] or edges.max() > _PLAUSIBLE_SPACING_MM[1]:
        return [f"voxels of {_edges(edges)} mm: unusual, check the header's units"]
    return []


def _edges(edges: np.ndarray) -> str:
    return " x ".join(f"{edge:g}" for edge in edges)


def to_ras(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a view of `array` (x, y, z, ...) with its axes nearest to R, A, S, and the affine (4, 4) of that view.

    Axes are permuted and flipped, nothing is interpolated or copied; equals MONAI's `Orientation("RAS")`. An oblique
    scan stays oblique.
    """
    return _reoriented(array, affine, nib.io_orientation(affine))


def from_ras(array_ras: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return a view of `array_ras` (x, y, z, ...) in RAS order, turned to the voxel order of the original `affine`."""
    ras = np.array([[0, 1], [1, 1], [2, 1]])
    return nib.apply_orientation(array_ras, nib.orientations.ornt_transform(ras, nib.io_orientation(affine)))


def to_voxel_order_of(array: np.ndarray, affine: np.ndarray, other_affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a view of `array` (x, y, z, ...) with axes in the order and direction of `other_affine`, and its affine.

    Affines are (4, 4). They are compared with each other and not with R, A, S: for an axis at 45 degrees, rounding
    would decide to which side of the patient it points.
    """
    return _reoriented(array, affine, nib.io_orientation(np.linalg.inv(other_affine) @ affine))


def _reoriented(array: np.ndarray, affine: np.ndarray, change: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    moved = affine @ nib.orientations.inv_ornt_aff(change, array.shape[:3])
    return nib.apply_orientation(array, change), moved


def affine_difference(affine: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Return the largest difference of two affines (4, 4) in voxel edge (mm), origin (mm) and axis direction (rad)."""
    edges, other_edges = np.linalg.norm(affine[:3, :3], axis=0), np.linalg.norm(other[:3, :3], axis=0)
    axes, other_axes = affine[:3, :3] / edges, other[:3, :3] / other_edges
    # The arc tangent keeps small angles, which the arc cosine of a value near 1 loses.
    angles = np.arctan2(np.linalg.norm(np.cross(axes.T, other_axes.T), axis=1), (axes * other_axes).sum(axis=0))
    origin = np.linalg.norm(affine[:3, 3] - other[:3, 3])
    return float(np.abs(edges - other_edges).max()), float(origin), float(angles.max())


def check_same_grid(image: Volume, label: Volume) -> None:
    """Raise `InputError` unless voxel (i, j, k) of `label` lies where voxel (i, j, k) of `image` lies.

    The shapes must be equal, and the affines within 1e-3 mm (edge and origin) and 1e-4 rad (axes).
    """
    if image.array.shape != label.array.shape:
        raise InputError(
            f"{label.path} has shape {_shape(label.array)}, but {image.path} has {_shape(image.array)};"
            " give the label that was drawn on this image"
        )
    edge, origin, angle = affine_difference(image.affine, label.affine)
    if max(edge, origin) > POSITION_TOLERANCE_MM or angle > ANGLE_TOLERANCE_RAD:
        raise InputError(
            f"{label.path} does not lie on the grid of {image.path}: voxel edge off by {edge:.3g} mm, origin by"
            f" {origin:.3g} mm, axes by {angle:.3g} rad; resample it onto the image"
        )


def _shape(array: np.ndarray) -> str:
    return " x ".join(str(size) for size in array.shape)
