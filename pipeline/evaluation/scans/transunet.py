# SPDX-License-Identifier: Apache-2.0
"""The convention behind the published Synapse figures, for comparison with them and for nothing else.

Published Dice and HD95 on Synapse come from the evaluation code of TransUNet (Chen et al., arXiv 2102.04306): HD95 is
medpy's: one 95th percentile over the distances of both directions, in voxels, as if each voxel were a unit cube. Where
the label lacks an organ that the prediction has, the pair (Dice, HD95) is (1, 0); where the prediction lacks it, it is
(0, 0), whether the label has it or not. So a missed organ improves the mean HD95, and an absent one costs Dice. Means
go over all cases, then over the organs. These figures are in files of their own and never beside ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation import overlap, surface
from pipeline.evaluation.scores import OK, organ_matrix, status_of
from pipeline.evaluation.summaries import MEAN_ROW, by_organ, count_statuses

FIXED_SCORES = {"false_positive": (1.0, 0.0), "missed": (0.0, 0.0), "absent": (0.0, 0.0)}


@dataclass(frozen=True)
class TransUNetScore:
    """One organ of one case by the published convention; `hd95_voxels` is pooled and in voxels."""

    case: str
    organ: str
    label: int
    status: str
    dice: float
    hd95_voxels: float


@dataclass(frozen=True)
class TransUNetSummary:
    """One organ over all cases, or, in the row `mean`, the mean of the organs (its statuses are totals)."""

    organ: str
    label: int | None
    n_cases: int
    n_ok: int
    n_missed: int
    n_false_positive: int
    n_absent: int
    dice_mean: float
    hd95_voxels_mean: float


def score_case_transunet(
    case: str,
    prediction: np.ndarray,
    label: np.ndarray,
    organs: Mapping[int, str],
    spacing_mm: surface.Spacing | None = None,
) -> list[TransUNetScore]:
    """Score every organ of one case by the published convention; arguments, shapes and errors as in `score_case`.

    `spacing_mm` is ignored; it is there so that both protocols can be called in the same way.
    """
    matrix = organ_matrix(prediction, label, organs)
    values = sorted(organs)
    dice = overlap.dice(matrix)
    in_label, in_prediction = overlap.label_voxels(matrix), overlap.prediction_voxels(matrix)
    unit_cubes = (1.0,) * label.ndim
    scores = []
    for value, distances in surface.organ_surface_distances(prediction, label, values, unit_cubes):
        status = status_of(in_prediction[value], in_label[value])
        pair = (float(dice[value]), surface.hd95_pooled_mm(distances)) if status == OK else FIXED_SCORES[status]
        scores.append(TransUNetScore(case, organs[value], value, status, *pair))
    return scores


def summarise_transunet(scores: Sequence[TransUNetScore]) -> list[TransUNetSummary]:
    """Return one row for each organ, by label value, and the row `mean`; every case counts in every mean."""
    rows = [
        TransUNetSummary(
            organ=mine[0].organ,
            label=mine[0].label,
            n_cases=len(mine),
            **count_statuses(mine),
            dice_mean=float(np.mean([score.dice for score in mine])),
            hd95_voxels_mean=float(np.mean([score.hd95_voxels for score in mine])),
        )
        for mine in by_organ(scores)
    ]
    mean = TransUNetSummary(
        organ=MEAN_ROW,
        label=None,
        n_cases=len({score.case for score in scores}),
        **count_statuses(scores),
        dice_mean=float(np.mean([row.dice_mean for row in rows])),
        hd95_voxels_mean=float(np.mean([row.hd95_voxels_mean for row in rows])),
    )
    return [*rows, mean]
