# SPDX-License-Identifier: Apache-2.0
"""Which slice of a scan is shown, and how: as radiologists see it."""

from __future__ import annotations

import numpy as np


def slice_with_most_organs(mask: np.ndarray) -> int:
    """Return the index along z of the slice with most organs; among equals, with most organ voxels.

    Args:
        mask: label map (x, y, z) in RAS order, 0 the background.
    """
    organs = [np.unique(mask[..., z]).size for z in range(mask.shape[2])]
    voxels = np.count_nonzero(mask, axis=(0, 1))
    return int(np.lexsort((voxels, organs))[-1])


def radiological_view(plane: np.ndarray) -> np.ndarray:
    """Return an axial slice (x, y) of an RAS volume as (rows, columns), the patient's right at the left."""
    # In RAS x grows to the patient's right and y to the front: both run against the columns and rows of the picture.
    return plane.T[::-1, ::-1]
