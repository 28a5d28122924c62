# SPDX-License-Identifier: Apache-2.0
"""Overlap of two label maps: one confusion matrix for each volume, from which Dice, IoU and volumes follow."""

from __future__ import annotations

import numpy as np

from pipeline.errors import InputError
from pipeline.evaluation.statistics import ratio

# Voxels counted in one step: indices stay in the processor's cache; a whole CT in one step would take 8 bytes a voxel.
_CHUNK = 1 << 18


def confusion_matrix(prediction: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """Count how often each label value meets each predicted value.

    `prediction` and `label` are integer label maps of one shape (any number of axes) with values from 0 to
    `classes` - 1. Returns (classes, classes) int64: row = value in `label`, column = value in `prediction`.
    Raises `InputError` for unequal shapes, for maps that are not integer and for values out of range.
    """
    check_label_maps(prediction, label, classes)
    if prediction.flags.f_contiguous and label.flags.f_contiguous:
        prediction, label = prediction.T, label.T  # NIfTI arrays: flattening the transpose needs no copy
    flat_prediction, flat_label = prediction.reshape(-1), label.reshape(-1)
    kind = np.uint8 if classes * classes <= 256 else np.uint16 if classes <= 256 else np.int64
    counts = np.zeros(classes * classes, dtype=np.int64)
    for start in range(0, flat_label.size, _CHUNK):
        pair = flat_label[start : start + _CHUNK].astype(kind)
        pair *= kind(classes)
        pair += flat_prediction[start : start + _CHUNK].astype(kind, copy=False)
        # Most voxels are background in both: leaving them out before counting is four times faster.
        counts += np.bincount(pair[pair != 0], minlength=classes * classes)
    counts[0] = flat_label.size - counts[1:].sum()
    return counts.reshape(classes, classes)


def dice(matrix: np.ndarray) -> np.ndarray:
    """Return the Dice of each class, (classes,) float, from a confusion matrix (classes, classes).

    It is 0 where only one side has the class and NaN where neither has.
    """
    return ratio(2 * np.diagonal(matrix), label_voxels(matrix) + prediction_voxels(matrix))


def iou(matrix: np.ndarray) -> np.ndarray:
    """Return intersection over union of each class, (classes,) float; 0 and NaN as for `dice`."""
    intersection = np.diagonal(matrix)
    return ratio(intersection, label_voxels(matrix) + prediction_voxels(matrix) - intersection)


def label_voxels(matrix: np.ndarray) -> np.ndarray:
    """Return how many voxels of each class the label has, (classes,) int."""
    return matrix.sum(axis=1)


def prediction_voxels(matrix: np.ndarray) -> np.ndarray:
    """Return how many voxels of each class the prediction has, (classes,) int."""
    return matrix.sum(axis=0)


def check_label_maps(prediction: np.ndarray, label: np.ndarray, classes: int) -> None:
    """Raise `InputError` unless both are integer maps of one shape with values from 0 to `classes` - 1."""
    if prediction.shape != label.shape:
        raise InputError(
            f"prediction has the shape {prediction.shape}, label {label.shape}; both must lie on one voxel grid"
        )
    for name, labels in (("prediction", prediction), ("label", label)):
        if labels.dtype.kind not in "uib":
            raise InputError(f"{name} is {labels.dtype}; give a label map of whole numbers (argmax of the classes)")
        if labels.size and (labels.max() >= classes or labels.min() < 0):
            raise InputError(
                f"{name} holds values from {labels.min()} to {labels.max()}; the organs need 0 to {classes - 1}"
            )
