# SPDX-License-Identifier: Apache-2.0
"""Scores of one image of tissue, class by class, and one row for each class over all images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.data.slides.base import UNREADABLE
from pipeline.errors import InputError
from pipeline.evaluation import surface
from pipeline.evaluation.scores import ABSENT, organ_matrix, status_of
from pipeline.evaluation.slides.pixel_scores import (
    PixelCounts,
    bootstrap_matrices,
    interval,
    mean_iou,
    overall_accuracy,
    pixel_counts,
)
from pipeline.evaluation.summaries import (
    MEAN_ROW,
    by_organ,
    count_statuses,
    dice_over_cases,
    dice_over_organs,
    mean_of_organs,
    mean_or_nan,
    median_or_nan,
    tally_statuses,
)

BACKGROUND = "background"
_PIXEL = (1.0, 1.0)


@dataclass(frozen=True)
class ImageScore:
    """One class of one image; `status`, `dice` and `iou` as in `OrganScore`, distances in pixels of the map scored.

    The four counts (TP, FP, FN, TN) are of the class against the rest; `accuracy` is (TP + TN) / all. `pixels_right` is
    the number of right pixels of the image in any class. Together with the counts of all classes it gives those of the
    background, and so ACC and mIoU. `matrix`, (K, K) over all classes of the image, is not in the tables; summaries add
    up the matrices.
    """

    image: str
    class_: str
    label: int
    status: str
    accuracy: float
    dice: float
    iou: float
    hd95_px: float
    hd95_pooled_px: float
    pixels_label: int
    pixels_prediction: int
    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int
    pixels_right: int
    hd95_penalised_px: float
    matrix: np.ndarray = field(repr=False, compare=False)

    @property
    def case(self) -> str:
        """The image's name, as rows of scans have it."""
        return self.image


PER_IMAGE_COLUMNS = (
    "image",
    "class",
    "label",
    "status",
    "accuracy",
    "dice",
    "iou",
    "hd95_px",
    "hd95_pooled_px",
    "pixels_label",
    "pixels_prediction",
    "true_positive",
    "false_positive",
    "false_negative",
    "true_negative",
    "pixels_right",
)


@dataclass(frozen=True)
class ClassSummary:
    """One class over all images: the background first, then the others by value, and the row `mean` last.

    `accuracy` to `f1` come from one confusion matrix over all images, each class against the rest; their intervals, and
    those of Dice, draw whole images. Dice and HD95 are as in `OrganSummary`, over the images that have the class, and
    are not measured for the background.

    In the row `mean`, `accuracy` is the share of all pixels that are right (ACC) and `iou` the mean of all classes that
    occur, background included (mIoU). All else is the mean over the classes without the background, and the counts of
    statuses are totals of those.
    """

    class_: str
    label: int | None
    n_images: int
    n_ok: int
    n_missed: int
    n_false_positive: int
    n_absent: int
    accuracy: float
    accuracy_ci95_low: float
    accuracy_ci95_high: float
    iou: float
    iou_ci95_low: float
    iou_ci95_high: float
    precision: float
    recall: float
    specificity: float
    f1: float
    dice_mean: float = math.nan
    dice_std: float = math.nan
    dice_ci95_low: float = math.nan
    dice_ci95_high: float = math.nan
    hd95_px_mean: float = math.nan
    hd95_px_median: float = math.nan
    hd95_penalised_px_mean: float = math.nan


def score_image(
    case: str,
    prediction: np.ndarray,
    label: np.ndarray,
    organs: Mapping[int, str],
    spacing_mm: surface.Spacing | None = None,
) -> list[ImageScore]:
    """Score every class of one image but the background, in the order of their label values.

    `prediction` and `label` are unsigned integer label maps (H, W), 0 the background; `organs` names their other
    values. `spacing_mm` is ignored, since distances are in pixels; it lets all protocols be called alike. Raises
    `InputError` for volumes, for unequal shapes and for values that `organs` does not name.
    """
    if label.ndim != 2:
        raise InputError(f"label has the shape {label.shape}, but slides are images (H, W); score scans with mm")
    _refuse_unreadable(prediction, organs)
    matrix = organ_matrix(prediction, label, organs)
    counts, values = pixel_counts(matrix), sorted(organs)
    diagonal_px = surface.diagonal_mm(label.shape, _PIXEL)
    return [
        ImageScore(
            image=case,
            class_=organs[value],
            label=value,
            status=status_of(counts.prediction[value], counts.label[value]),
            accuracy=float(counts.accuracy[value]),
            dice=float(counts.f1[value]),
            iou=float(counts.iou[value]),
            **_distance_columns(distances, diagonal_px),
            **_pixel_columns(counts, value),
            pixels_right=int(np.trace(matrix)),
            matrix=matrix,
        )
        for value, distances in surface.organ_surface_distances(prediction, label, values, _PIXEL)
    ]


def summarise_classes(scores: Sequence[ImageScore]) -> list[ClassSummary]:
    """Return one row for the background, one for each other class by label value, and the row `mean` last."""
    matrices = image_matrices(scores)
    pooled, draws = matrices.sum(axis=0), bootstrap_matrices(matrices)
    background = ClassSummary(
        class_=BACKGROUND,
        label=0,
        n_images=len(matrices),
        **_background_statuses(matrices),
        **_pooled_figures(pooled, draws, 0),
    )
    rows = [_summarise_class(mine, pooled, draws) for mine in by_organ(scores)]
    return [background, *rows, _mean_row(rows, scores, pooled, draws)]


def image_matrices(scores: Sequence[ImageScore]) -> np.ndarray:
    """Return the confusion matrices (images, K, K) in order of the images' names, each once."""
    by_image = {score.image: score.matrix for score in scores}
    return np.stack([by_image[image] for image in sorted(by_image)])


def _refuse_unreadable(prediction: np.ndarray, organs: Mapping[int, str]) -> None:
    """Raise `InputError` for pixels of 255 where that is no class: what they mean must not be guessed."""
    count = 0 if UNREADABLE in organs or prediction.dtype != np.uint8 else np.count_nonzero(prediction == UNREADABLE)
    if count:
        raise InputError(
            f"prediction holds {count} pixels of {UNREADABLE}, which stands for places of the slide that could not be "
            "read; score only images read whole (and write class indices: 1, not 255, for a single class)"
        )


def _distance_columns(distances: surface.SurfaceDistances, diagonal_px: float) -> dict[str, float]:
    hd95 = surface.hd95_mm(distances)
    return {
        "hd95_px": hd95,
        "hd95_pooled_px": surface.hd95_pooled_mm(distances),
        "hd95_penalised_px": diagonal_px if math.isinf(hd95) else hd95,
    }


def _pixel_columns(counts: PixelCounts, value: int) -> dict[str, int]:
    return {
        "pixels_label": int(counts.label[value]),
        "pixels_prediction": int(counts.prediction[value]),
        "true_positive": int(counts.true_positive[value]),
        "false_positive": int(counts.false_positive[value]),
        "false_negative": int(counts.false_negative[value]),
        "true_negative": int(counts.true_negative[value]),
    }


def _background_statuses(matrices: np.ndarray) -> dict[str, int]:
    counts = pixel_counts(matrices)
    return tally_statuses(
        status_of(in_prediction, in_label)
        for in_prediction, in_label in zip(counts.prediction[:, 0], counts.label[:, 0], strict=True)
    )


def _pooled_figures(pooled: np.ndarray, draws: np.ndarray | None, value: int) -> dict[str, float]:
    counts = pixel_counts(pooled)
    figures = {
        name: float(getattr(counts, name)[value])
        for name in ("accuracy", "iou", "precision", "recall", "specificity", "f1")
    }
    return {
        **figures,
        **_interval_columns("accuracy", interval(draws, lambda drawn: pixel_counts(drawn).accuracy[:, value])),
        **_interval_columns("iou", interval(draws, lambda drawn: pixel_counts(drawn).iou[:, value])),
    }


def _interval_columns(name: str, bounds: tuple[float, float]) -> dict[str, float]:
    return {f"{name}_ci95_low": bounds[0], f"{name}_ci95_high": bounds[1]}


def _summarise_class(scores: Sequence[ImageScore], pooled: np.ndarray, draws: np.ndarray | None) -> ClassSummary:
    present = [score for score in scores if score.status != ABSENT]
    hd95 = [score.hd95_px for score in present]
    return ClassSummary(
        class_=scores[0].class_,
        label=scores[0].label,
        n_images=len(scores),
        **count_statuses(scores),
        **_pooled_figures(pooled, draws, scores[0].label),
        **dice_over_cases(scores),
        hd95_px_mean=mean_or_nan(hd95),
        hd95_px_median=median_or_nan(hd95),
        hd95_penalised_px_mean=mean_or_nan([score.hd95_penalised_px for score in present]),
    )


def _mean_row(
    rows: Sequence[ClassSummary], scores: Sequence[ImageScore], pooled: np.ndarray, draws: np.ndarray | None
) -> ClassSummary:
    means = ("precision", "recall", "specificity", "f1", "hd95_px_mean", "hd95_px_median", "hd95_penalised_px_mean")
    return ClassSummary(
        class_=MEAN_ROW,
        label=None,
        n_images=rows[0].n_images,
        **count_statuses(scores),
        accuracy=float(overall_accuracy(pooled)),
        iou=float(mean_iou(pooled)),
        **_interval_columns("accuracy", interval(draws, overall_accuracy)),
        **_interval_columns("iou", interval(draws, mean_iou)),
        **dice_over_organs(scores),
        **{name: mean_of_organs([getattr(row, name) for row in rows]) for name in means},
    )
