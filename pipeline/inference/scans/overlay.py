# SPDX-License-Identifier: Apache-2.0
"""A picture of a segmented scan: one axial slice, plain and with its organs in colour, and their volumes."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pipeline.data.scans.axial_view import radiological_view, slice_with_most_organs
from pipeline.data.scans.geometry import Volume, to_ras
from pipeline.data.slides.palette import colour_of, tinted
from pipeline.files.atomic import replace_when_complete

_OPACITY = 0.5
_SHOWN_PERCENT = (1.0, 99.0)  # of the slice's values, which become black and white


def overlay_figure(scan: Volume, labels: np.ndarray, volumes_ml: Mapping[str, tuple[int, float]]) -> Figure:
    """Draw the slice with most organs, the patient's right at the left, plain and tinted.

    Args:
        scan: with its voxels (x, y, z).
        labels: (x, y, z) uint8, on the scan's grid.
        volumes_ml: organ name to label value and volume in ml, for the legend, which also lists organs without a voxel.
    """
    image, affine = to_ras(scan.array, scan.affine)
    masks = to_ras(labels, scan.affine)[0]
    z = slice_with_most_organs(masks)
    plane, mask = (radiological_view(array[..., z]) for array in (image, masks))
    low, high = np.percentile(plane, _SHOWN_PERCENT)
    grey = np.clip((plane.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1)
    picture = np.repeat(grey[..., None], 3, axis=2)
    width_mm, height_mm = np.linalg.norm(affine[:3, :2], axis=0)
    figure = Figure(figsize=(9, 5), layout="constrained")
    for axis, shown in zip(figure.subplots(1, 2), (picture, tinted(picture, mask, _OPACITY)), strict=True):
        axis.imshow(shown, aspect=height_mm / width_mm)
        axis.set_axis_off()
    handles = [
        Patch(color=colour_of(value), label=f"{organ}, {volume_ml:,.0f} ml" if volume_ml else f"{organ}, not found")
        for organ, (value, volume_ml) in volumes_ml.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def write_overlay(
    path: str | os.PathLike[str], scan: Volume, labels: np.ndarray, volumes_ml: Mapping[str, tuple[int, float]]
) -> None:
    """Write the picture of `overlay_figure` as PNG, atomically; `labels` is (x, y, z) uint8 on the scan's grid."""
    with replace_when_complete(path) as temporary:
        overlay_figure(scan, labels, volumes_ml).savefig(temporary, dpi=130, format="png")
