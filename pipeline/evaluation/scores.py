# SPDX-License-Identifier: Apache-2.0
"""Scores of one case: which organs were found, missed or invented, and how well, in mm and ml."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.errors import InputError
from pipeline.evaluation import overlap, surface

OK = "ok"
MISSED = "missed"
FALSE_POSITIVE = "false_positive"
ABSENT = "absent"
STATUSES = (OK, MISSED, FALSE_POSITIVE, ABSENT)

_ML_PER_MM3 = 1e-3


@dataclass(frozen=True)
class OrganScore:
    """One organ of one case.

    `status` is `ok` (label and prediction have the organ), `missed` (only the label has it), `false_positive` (only the
    prediction) or `absent` (neither). For a missed or invented organ, Dice and IoU are 0, distances are inf, and
    `hd95_penalised_mm` is the diagonal of the volume in mm. For an absent organ, all of these are NaN.
    """

    case: str
    organ: str
    label: int
    status: str
    dice: float
    iou: float
    hd95_mm: float
    hd95_pooled_mm: float
    assd_mm: float
    volume_label_ml: float
    volume_prediction_ml: float
    hd95_penalised_mm: float


def score_case(
    case: str,
    prediction: np.ndarray,
    label: np.ndarray,
    organs: Mapping[int, str],
    spacing_mm: surface.Spacing | None,
) -> list[OrganScore]:
    """Score every organ of one case, in the order of their label values.

    `prediction` and `label` are unsigned integer label maps of one shape, (x, y, z) or (H, W), 0 the background.
    `organs` names their other values. `spacing_mm` has a length or a step for each axis, see `surface`. With
    `spacing_mm=None` the voxel size is unknown, and distances and volumes are NaN. Volumes are NaN for 2D images too.
    Raises `InputError` for values that `organs` does not name and for maps on different grids.
    """
    matrix = organ_matrix(prediction, label, organs)
    values = sorted(organs)
    if spacing_mm is None:
        distances, diagonal = {}, math.nan
    else:
        distances = dict(surface.organ_surface_distances(prediction, label, values, spacing_mm))
        diagonal = surface.diagonal_mm(label.shape, spacing_mm)
    voxel_ml = math.nan if spacing_mm is None or label.ndim != 3 else _ML_PER_MM3 * surface.voxel_mm3(spacing_mm)
    dice, iou = overlap.dice(matrix), overlap.iou(matrix)
    in_label, in_prediction = overlap.label_voxels(matrix), overlap.prediction_voxels(matrix)
    return [
        OrganScore(
            case=case,
            organ=organs[value],
            label=value,
            status=status_of(in_prediction[value], in_label[value]),
            dice=float(dice[value]),
            iou=float(iou[value]),
            volume_label_ml=float(in_label[value] * voxel_ml),
            volume_prediction_ml=float(in_prediction[value] * voxel_ml),
            **_distance_columns(distances.get(value), diagonal),
        )
        for value in values
    ]


def status_of(prediction_voxels: int, label_voxels: int) -> str:
    """Return the status of an organ by its numbers of voxels in prediction and label."""
    if label_voxels:
        return OK if prediction_voxels else MISSED
    return FALSE_POSITIVE if prediction_voxels else ABSENT


def organ_matrix(prediction: np.ndarray, label: np.ndarray, organs: Mapping[int, str]) -> np.ndarray:
    """Return the confusion matrix (K, K) of two label maps of one shape, K the largest value of `organs` + 1.

    Raises `InputError` for values that are neither 0 nor named in `organs`.
    """
    if not organs or min(organs) < 1:
        raise InputError(f"organs are {dict(organs)}; name one label value from 1 on at least")
    matrix = overlap.confusion_matrix(prediction, label, max(organs) + 1)
    for name, voxels in (
        ("prediction", overlap.prediction_voxels(matrix)),
        ("label", overlap.label_voxels(matrix)),
    ):
        unknown = [int(value) for value in np.flatnonzero(voxels) if value != 0 and value not in organs]
        if unknown:
            raise InputError(f"{name} holds the values {unknown}, which name no organ; known are {sorted(organs)}")
    return matrix


def _distance_columns(distances: surface.SurfaceDistances | None, diagonal_mm: float) -> dict[str, float]:
    if distances is None:
        return dict.fromkeys(("hd95_mm", "hd95_pooled_mm", "assd_mm", "hd95_penalised_mm"), math.nan)
    hd95 = surface.hd95_mm(distances)
    return {
        "hd95_mm": hd95,
        "hd95_pooled_mm": surface.hd95_pooled_mm(distances),
        "assd_mm": surface.assd_mm(distances),
        "hd95_penalised_mm": diagonal_mm if math.isinf(hd95) else hd95,
    }
