# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from medpy.metric.binary import dc, jc
from monai.metrics import compute_dice

from pipeline.errors import InputError
from pipeline.evaluation import confusion_matrix, dice, iou, label_voxels, prediction_voxels

# fmt: off
LABEL = np.array([[0, 0, 1, 1],
                  [0, 2, 2, 1],
                  [0, 2, 2, 0]], dtype=np.uint8)
PREDICTION = np.array([[0, 1, 1, 1],
                       [0, 0, 2, 0],
                       [0, 2, 2, 0]], dtype=np.uint8)
# fmt: on


def random_maps(seed: int, shape: tuple[int, ...], classes: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return tuple(generator.integers(0, classes, shape).astype(np.uint8) for _ in range(2))


def test_matrix_by_hand():
    # Row = label, column = prediction. Label 1: (0,2) (0,3) hit, (1,3) lost; label 2: (1,1) lost, three hit.
    assert confusion_matrix(PREDICTION, LABEL, 3).tolist() == [[4, 1, 0], [1, 2, 0], [1, 0, 3]]


def test_dice_iou_and_volumes_by_hand():
    matrix = confusion_matrix(PREDICTION, LABEL, 4)
    assert dice(matrix)[1:3].tolist() == [2 * 2 / (3 + 3), 2 * 3 / (4 + 3)]
    assert iou(matrix)[1:3].tolist() == [2 / 4, 3 / 4]
    assert label_voxels(matrix).tolist() == [5, 3, 4, 0]
    assert prediction_voxels(matrix).tolist() == [6, 3, 3, 0]


def test_one_sided_class_scores_zero_and_absent_class_is_nan():
    only_label, only_prediction = np.array([1, 0, 0], np.uint8), np.array([0, 2, 0], np.uint8)
    matrix = confusion_matrix(only_prediction, only_label, 4)
    np.testing.assert_array_equal(dice(matrix)[1:], [0, 0, np.nan])
    np.testing.assert_array_equal(iou(matrix)[1:], [0, 0, np.nan])


@pytest.mark.parametrize("classes", [2, 9, 16, 17, 256])
def test_matrix_equals_pairwise_counting_for_every_number_of_classes(classes):
    prediction, label = random_maps(classes, (13, 7, 5), classes)
    expected = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(expected, (label.ravel(), prediction.ravel()), 1)
    np.testing.assert_array_equal(confusion_matrix(prediction, label, classes), expected)


def test_volumes_larger_than_one_step_are_counted_whole():
    prediction, label = random_maps(0, (130, 90, 70), 3)
    matrix = confusion_matrix(prediction, label, 3)
    assert matrix.sum() == label.size
    assert matrix[2, 1] == np.count_nonzero((label == 2) & (prediction == 1))


@pytest.mark.parametrize("order_prediction", ["C", "F"])
@pytest.mark.parametrize("order_label", ["C", "F"])
def test_memory_layout_does_not_matter(order_prediction, order_label):
    prediction, label = random_maps(1, (6, 5, 4), 4)
    expected = confusion_matrix(prediction, label, 4)
    turned = confusion_matrix(np.asarray(prediction, order=order_prediction), np.asarray(label, order=order_label), 4)
    np.testing.assert_array_equal(turned, expected)
    np.testing.assert_array_equal(confusion_matrix(prediction[::-1], label[::-1], 4), expected)


def test_swapping_the_sides_transposes_and_keeps_dice():
    prediction, label = random_maps(2, (8, 8, 8), 5)
    forward, backward = confusion_matrix(prediction, label, 5), confusion_matrix(label, prediction, 5)
    np.testing.assert_array_equal(forward, backward.T)
    np.testing.assert_array_equal(dice(forward), dice(backward))


def test_parity_with_medpy_and_monai():
    prediction, label = random_maps(3, (12, 10, 8), 5)
    matrix = confusion_matrix(prediction, label, 5)
    organs = range(1, 5)
    np.testing.assert_allclose(dice(matrix)[1:], [dc(prediction == k, label == k) for k in organs])
    np.testing.assert_allclose(iou(matrix)[1:], [jc(prediction == k, label == k) for k in organs])
    one_hot = [torch.from_numpy(np.stack([labels == k for k in range(5)])[None]) for labels in (prediction, label)]
    monai = compute_dice(*one_hot, include_background=False)
    np.testing.assert_allclose(dice(matrix)[1:], monai[0].numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [
        (np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), r"shape \(2, 3\), label \(3, 2\)"),
        (np.zeros(3), np.zeros(3, np.uint8), "prediction is float64"),
        (np.zeros(3, np.uint8), np.array([0, 7, 0], np.uint8), "label holds values from 0 to 7"),
        (np.array([0, -1, 0]), np.zeros(3, np.uint8), "prediction holds values from -1 to 0"),
    ],
)
def test_maps_that_do_not_fit_are_refused(prediction, label, message):
    with pytest.raises(InputError, match=message):
        confusion_matrix(prediction, label, 3)
