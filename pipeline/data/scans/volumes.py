# SPDX-License-Identifier: Apache-2.0
"""Scans and label maps on disk: one way to read and write them, for preparing data, training and inference alike.

Files that could give a wrong mask or number without notice are refused with an `InputError`. Files that are odd but
safe are read, with a sentence in `Volume.notes`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.scans.formats import NIFTI_SUFFIXES, SUFFIXES, scan_suffix
from pipeline.data.scans.geometry import Volume, check_same_grid, from_ras, to_ras, to_voxel_order_of
from pipeline.data.scans.nifti import MAX_VOXEL_BYTES, read_nifti, write_nifti_labels
from pipeline.errors import InputError

__all__ = [
    "MAX_VOXEL_BYTES",
    "SUFFIXES",
    "Volume",
    "check_same_grid",
    "from_ras",
    "label_counts",
    "metadata_of",
    "on_grid_of",
    "read_label",
    "read_volume",
    "scan_suffix",
    "signed_values",
    "to_ras",
    "with_label_values",
    "write_label_map",
]

# Label maps saved as floats have rounding errors of this order; larger ones come from interpolation between classes.
_LABEL_TOLERANCE = 1e-3
_MOST_LISTED = 10


def read_volume(path: str | os.PathLike[str], max_bytes: int = MAX_VOXEL_BYTES) -> Volume:
    """Read a scan: `.nii`, `.nii.gz`, `.nrrd`, `.mha`, `.mhd`, or a folder that holds one DICOM series.

    Integer files keep an integer type, all else is float32; the axes stay as stored. Raises `InputError` for a file
    that is missing, damaged, not one 3D volume, larger than `max_bytes` of voxels, without a usable affine, or with
    voxels that are NaN or infinite.
    """
    path = Path(path)
    suffix = scan_suffix(path)
    _check_exists(path, suffix)
    try:
        volume = _reader_of(path, suffix)(path, max_bytes)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check the file") from error
    except MemoryError as error:
        raise InputError(f"{path} does not fit into memory; close other programs or use a larger machine") from error
    _check_finite(volume)
    return volume


def _reader_of(path: Path, suffix: str | None) -> Callable[[Path, int], Volume]:
    """Return the reader of a file or folder; SimpleITK and pydicom take a second to load, so NIfTI goes without."""
    if path.is_dir():
        from pipeline.data.scans.dicom import read_dicom_series

        return read_dicom_series
    if suffix in NIFTI_SUFFIXES:
        return read_nifti
    from pipeline.data.scans.simpleitk import read_simpleitk

    return read_simpleitk


def _check_exists(path: Path, suffix: str | None) -> None:
    try:
        path.stat()
    except FileNotFoundError:
        raise InputError(f"no such file: {path}; check the path") from None
    except (OSError, ValueError) as error:  # the latter for names that no system can encode
        raise InputError(f"cannot open {path}: {getattr(error, 'strerror', error)}; check the path") from error
    if path.is_dir() and suffix is not None:
        raise InputError(f"{path} is a folder, though its name says {suffix}; give the file inside it")
    if not path.is_dir() and not path.is_file():
        raise InputError(f"{path} is no regular file; give a scan")  # reading a pipe or a device might never end
    if not path.is_dir() and suffix is None:
        raise InputError(f"{path} is of an unknown format; give {', '.join(SUFFIXES)} or a DICOM series folder")


def _check_finite(volume: Volume) -> None:
    if volume.array.dtype.kind != "f":
        return
    bad = sum(int(np.count_nonzero(~np.isfinite(volume.array[..., z]))) for z in range(volume.array.shape[2]))
    if bad:
        raise InputError(
            f"{volume.path}: {bad} of {volume.array.size} voxels are NaN or infinite; replace them (air is -1024 HU)"
        )


def read_label(
    path: str | os.PathLike[str], like: Volume | None = None, labels: Collection[int] | None = None
) -> Volume:
    """Read a label map as uint8.

    `like`: the image whose grid it must have; if only the order or direction of the stored axes differs, the map is
    turned to the image's. `labels`: the values that may occur. Raises `InputError` as `read_volume`
    does, and for values that are not whole (within 1e-3), not in 0..255 or not in `labels` (listed with counts), and
    for another grid than that of `like`.
    """
    volume = with_label_values(read_volume(path), labels)
    return volume if like is None else on_grid_of(like, volume)


def with_label_values(volume: Volume, labels: Collection[int] | None = None) -> Volume:
    """Return a volume that was read from a label map, as uint8; `InputError` for values as `read_label` raises it."""
    volume = replace(volume, array=_whole_numbers(volume))
    if labels is not None:
        _check_known(volume, labels)
    return volume


def _whole_numbers(volume: Volume) -> np.ndarray:
    """Return the values as uint8, slice by slice; refuse what is no whole number in 0..255."""
    labels = np.empty(volume.array.shape, dtype=np.uint8, order="F")
    wrong: dict[float, int] = {}
    for z in range(labels.shape[2]):
        values = volume.array[..., z]
        rounded = np.rint(values) if values.dtype.kind == "f" else values
        bad = (np.abs(values - rounded) > _LABEL_TOLERANCE) | (rounded < 0) | (rounded > 255)
        for value, count in zip(*np.unique(values[bad], return_counts=True), strict=True):
            wrong[float(value)] = wrong.get(float(value), 0) + int(count)
        labels[..., z] = np.where(bad, 0, rounded).astype(np.uint8)
    if wrong:
        raise InputError(
            f"{volume.path}: labels must be whole numbers from 0 to 255, but it holds {_counts(wrong)}; save it as"
            " drawn, and resample it by nearest neighbour alone"
        )
    return labels


def _check_known(volume: Volume, labels: Collection[int]) -> None:
    counts = label_counts(volume.array)
    unknown = {float(value): int(counts[value]) for value in np.flatnonzero(counts) if value not in labels}
    if unknown:
        known = ", ".join(str(value) for value in sorted(labels))
        raise InputError(
            f"{volume.path}: unknown label values {_counts(unknown)}; the dataset declares {known}: correct either"
        )


def label_counts(labels: np.ndarray) -> np.ndarray:
    """Return the number of voxels of each value 0..255 of `labels` (x, y, z) uint8, as (256,) integers."""
    counts = np.zeros(256, dtype=np.int64)
    for z in range(labels.shape[2]):  # bincount turns its input into int64: eight times a whole volume
        counts += np.bincount(labels[..., z].ravel(order="K"), minlength=256)
    return counts


def _counts(values: dict[float, int]) -> str:
    listed = [f"{value:g} ({values[value]} voxels)" for value in sorted(values)]
    more = f" and {len(listed) - _MOST_LISTED} more" if len(listed) > _MOST_LISTED else ""
    return ", ".join(listed[:_MOST_LISTED]) + more


def on_grid_of(like: Volume, label: Volume) -> Volume:
    """Return `label` with its axes in the order and direction of `like`; `InputError` where their grids differ."""
    try:
        check_same_grid(like, label)
        return label
    except InputError:
        array, affine = to_voxel_order_of(label.array, label.affine, like.affine)
        turned = replace(label, array=array, affine=affine, notes=(*label.notes, "axes turned to those of the image"))
        check_same_grid(like, turned)
        return turned


def write_label_map(path: str | os.PathLike[str], labels: np.ndarray, like: Volume) -> None:
    """Write `labels` (x, y, z) uint8 as `.nii.gz` on the grid of `like`, whole or not at all.

    Shape and affine are those of the scan: sform, qform, codes and units bit by bit where it was NIfTI, its RAS affine
    for other formats. Raises `InputError` for another file name, a folder that cannot be written, or when `path` is
    the scan itself; `ValueError` for an array of another type or shape.
    """
    path = Path(path)
    if not path.name.endswith(".nii.gz"):
        raise InputError(f"label maps are written as .nii.gz; rename the output {path}")
    if os.path.realpath(path) == os.path.realpath(like.path):
        raise InputError(f"the label map would overwrite the scan {like.path}; choose another output folder")
    if labels.dtype != np.uint8 or labels.shape != like.array.shape:
        raise ValueError(f"labels are {labels.dtype} {labels.shape}, not uint8 {like.array.shape} as the scan")
    try:
        write_nifti_labels(path, labels, like)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; free some space there") from error


def signed_values(array: np.ndarray) -> np.ndarray:
    """Return an array, of any shape, in a type that torch computes with: uint8 is its only unsigned one.

    uint16 becomes int16 (a view) where all values fit, as in CT stored unsigned, else int32; uint32 becomes int64 and
    uint64 float32. Other types pass through.
    """
    if array.dtype.kind != "u" or array.dtype.itemsize == 1:
        return array
    if array.dtype.itemsize == 2:
        return array.view(np.int16) if array.max() < 2**15 else array.astype(np.int32, order="K")
    return array.astype(np.int64 if array.dtype.itemsize == 4 else np.float32, order="K")


def metadata_of(affine: np.ndarray, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return MONAI's metadata of a volume without a channel axis: affine (RAS), shape, space."""
    return {
        "affine": affine.copy(),
        "original_affine": affine.copy(),
        "spatial_shape": np.asarray(shape),
        "space": "RAS",
        "original_channel_dim": float("nan"),  # MONAI's word for "no channel axis"
    }
