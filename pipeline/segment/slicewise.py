# SPDX-License-Identifier: Apache-2.0
"""An exported 2D student over all slices of a scan, a few at a time: `pipeline.inference.segment` without torch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipeline.data.scans.geometry import Volume, to_ras
from pipeline.data.scans.volumes import signed_values
from pipeline.errors import InputError
from pipeline.runtimes.description import Description
from pipeline.runtimes.resampling import labels_at, resize_images
from pipeline.runtimes.runners import Run, Student
from pipeline.segment.preprocessing import intensity_rule_of, scaled

SLICES_PER_CHUNK = 4
_THREADS = 4  # each holds a chunk and its logits, and waits for the runtime, which takes all cores


def check_segments_scans(description: Description) -> None:
    """Refuse (`InputError`) a student that this way cannot use: of slides, of volumes, of another preprocessing."""
    if description.tile_px is not None:
        raise InputError(
            "this student was trained on tiles of slides; use python -m monai.bundle run with its model.pt"
        )
    if description.spatial_dims != 2 or not isinstance(description.size, int):
        raise InputError(
            "this student takes volumes, the light way slices; use python -m monai.bundle run with its model.pt"
        )
    if description.in_channels != 1:
        raise InputError(f"this student takes {description.in_channels} channels, a scan has one; choose another")
    intensity_rule_of(description.preprocessing)


def warm_up(student: Student) -> None:
    """Run the network once: runtimes compile it for its size at the first run."""
    description = student.description
    side = description.size + -description.size % description.size_divisor
    student.run(np.zeros((1, description.in_channels, side, side), np.float32))


def segment_volume(volume: Volume, student: Student, slices_per_chunk: int = SLICES_PER_CHUNK) -> np.ndarray:
    """Return the label map (x, y, z) uint8 of a scan, voxel for voxel on the scan's own grid and in its own order.

    Several chunks of slices are prepared and labelled at once, in threads, while the network runs. The size of the
    chunks does not change the result; memory grows with it.

    Raises:
        InputError: a student of another kind, logits that are not finite.
    """
    check_segments_scans(student.description)
    array, _ = to_ras(signed_values(volume.array), volume.affine)
    low, high = intensity_rule_of(student.description.preprocessing).window(array)
    labels = np.empty(volume.array.shape, dtype=np.uint8, order="F")
    labels_ras, _ = to_ras(labels, volume.affine)  # a view: what is written into it lands on the scan's own grid
    depth = array.shape[2]

    def segment_chunk(start: int) -> None:
        """Write the labels of some slices."""
        chosen = slice(start, start + slices_per_chunk)
        slices = scaled(array[..., chosen], low, high).transpose(2, 0, 1)
        logits = logits_at_training_size(slices, student.description, student.run)
        _check_finite(logits, start, depth)
        labels_ras[..., chosen] = labels_at(logits, slices.shape[1:]).transpose(1, 2, 0)

    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(segment_chunk, range(0, depth, slices_per_chunk)):  # raises the first error
            pass
    return labels


def logits_at_training_size(slices: np.ndarray, description: Description, run: Run) -> np.ndarray:
    """Return logits (N, K, S, S) float32 of slices (N, H, W) in [0, 1], resized to the training size S."""
    size = description.size
    images = resize_images(slices, (size, size))[:, None]
    before = -size % description.size_divisor // 2
    after = -size % description.size_divisor - before
    if not after:
        return run(np.ascontiguousarray(images))
    border = [(0, 0), (0, 0), (before, after), (before, after)]
    # As PaddedInferer pads: mirrored without the border itself, or repeated where the image is too short for that.
    logits = run(np.pad(images, border, mode="reflect" if after < size else "edge"))
    return logits[..., before : before + size, before : before + size]


def _check_finite(logits: np.ndarray, start: int, depth: int) -> None:
    finite = np.isfinite(logits).all(axis=(1, 2, 3))
    if not finite.all():
        place = start + int(np.flatnonzero(~finite)[0])
        raise InputError(
            f"the network's logits are NaN or infinite in slice {place} of {depth} (0 is the lowest); export it again"
        )
