# SPDX-License-Identifier: Apache-2.0
"""Accuracy, IoU, precision, recall, specificity and F1 of classes, from confusion matrices counted once.

The matrix is that of `overlap.confusion_matrix`: row = class in the label, column = class in the prediction. Each class
is taken against the rest of them. IoU, precision, recall and F1 are 0 where only one side has the class (sklearn's
`zero_division=0`) and NaN where neither has, so that a missed class lowers the mean and an absent one does not count.
Accuracy and specificity also count true negatives, so they apply to absent classes too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.statistics import draw_cases, mean_of_occurring, ratio


@dataclass(frozen=True)
class PixelCounts:
    """Pixels of each class against the rest, of matrices (..., K, K); all fields and properties are (..., K)."""

    true_positive: np.ndarray
    false_positive: np.ndarray
    false_negative: np.ndarray
    true_negative: np.ndarray

    @property
    def label(self) -> np.ndarray:
        """Pixels that the label gives to the class."""
        return self.true_positive + self.false_negative

    @property
    def prediction(self) -> np.ndarray:
        """Pixels that the prediction gives to the class."""
        return self.true_positive + self.false_positive

    @property
    def accuracy(self) -> np.ndarray:
        """(TP + TN) / all."""
        right = self.true_positive + self.true_negative
        return ratio(right, right + self.false_positive + self.false_negative)

    @property
    def iou(self) -> np.ndarray:
        """TP / (TP + FP + FN)."""
        return self._if_occurs(self.true_positive, self.prediction + self.false_negative)

    @property
    def precision(self) -> np.ndarray:
        """TP / (TP + FP)."""
        return self._if_occurs(self.true_positive, self.prediction)

    @property
    def recall(self) -> np.ndarray:
        """TP / (TP + FN), which is also called sensitivity."""
        return self._if_occurs(self.true_positive, self.label)

    @property
    def specificity(self) -> np.ndarray:
        """TN / (TN + FP); NaN where the label gives every pixel to the class."""
        return ratio(self.true_negative, self.true_negative + self.false_positive)

    @property
    def f1(self) -> np.ndarray:
        """2 TP / (2 TP + FP + FN), of one image the same as Dice."""
        return self._if_occurs(2 * self.true_positive, self.label + self.prediction)

    def _if_occurs(self, numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
        """Return the ratio, 0 where one side alone has the class, NaN where neither has."""
        occurs = self.label + self.prediction > 0
        return np.where(occurs, np.nan_to_num(ratio(numerator, denominator)), np.nan)


def pixel_counts(matrices: np.ndarray) -> PixelCounts:
    """Return the counts of every class of confusion matrices (..., K, K)."""
    hit = np.diagonal(matrices, axis1=-2, axis2=-1)
    label, prediction = matrices.sum(axis=-1), matrices.sum(axis=-2)
    return PixelCounts(hit, prediction - hit, label - hit, label.sum(axis=-1, keepdims=True) - label - prediction + hit)


def overall_accuracy(matrices: np.ndarray) -> np.ndarray:
    """Return the share of right pixels, (...,), of matrices (..., K, K); with two classes (TP + TN) / all, the ACC."""
    return ratio(np.trace(matrices, axis1=-2, axis2=-1), matrices.sum(axis=(-2, -1)))


def mean_iou(matrices: np.ndarray) -> np.ndarray:
    """Return the mean IoU of the classes that occur, with the background, (...,): the paper's mIoU."""
    return mean_of_occurring(pixel_counts(matrices).iou)


def bootstrap_matrices(matrices: np.ndarray) -> np.ndarray | None:
    """Return pooled matrices (resamples, K, K) of images drawn with replacement from `matrices` (images, K, K).

    Whole images are drawn, since the pixels of one image are not independent. Returns None for fewer than two images,
    which tell nothing about the spread. The draws are those of `draw_cases`.
    """
    images = len(matrices)
    if images < 2:
        return None
    # In float64, for BLAS: whole numbers stay exact up to 9e15 pixels.
    flat = matrices.reshape(images, -1).astype(np.float64)
    return (draw_cases(images) @ flat).reshape(-1, *matrices.shape[1:])


def interval(draws: np.ndarray | None, figure: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
    """Return the 95 % percentile interval of a figure (resamples,) over `bootstrap_matrices`; NaN without draws.

    Draws in which the figure does not apply are left out.
    """
    values = np.empty(0) if draws is None else figure(draws)
    values = values[~np.isnan(values)]
    if not values.size:
        return np.nan, np.nan
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
