# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.data.samples import slices
from pipeline.runtimes.resampling import labels_at, resize_images, resize_weights

SIDES = [(47, 61), (24, 24), (24, 61), (7, 5), (1, 9), (100, 130)]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def test_halving_by_hand():
    # The triangle over the first target pixel is centred at 1 and reaches 2 source pixels to either side.
    expected = [[3 / 7, 3 / 7, 1 / 7, 0], [0, 1 / 7, 3 / 7, 3 / 7]]
    np.testing.assert_allclose(resize_weights(4, 2), expected, atol=1e-7)


def test_doubling_by_hand():
    expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    np.testing.assert_allclose(resize_weights(2, 4), expected, atol=1e-7)


@pytest.mark.parametrize("target", [1, 3, 24, 224, 512])
@pytest.mark.parametrize("length", [1, 5, 24, 512])
def test_a_constant_image_keeps_its_value(length, target):
    weights = resize_weights(length, target)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("sides", SIDES)
def test_resized_images_are_those_of_training(sides):
    images = noise(3, 47, 61)
    expected = slices.resize_images(torch.from_numpy(images)[:, None], sides)[:, 0].numpy()
    np.testing.assert_allclose(resize_images(images, sides), expected, atol=1e-6)


def test_resized_images_of_large_scans_are_those_of_training():
    images = noise(1, 512, 500)
    expected = slices.resize_images(torch.from_numpy(images)[:, None], (224, 224))[:, 0].numpy()
    np.testing.assert_allclose(resize_images(images, (224, 224)), expected, atol=1e-6)


def test_labels_between_two_pixels_by_hand():
    # Class 1 is ahead by -1 in the first pixel and by 2 in the second: by -1, -0.25, 1.25 and 2 in the four of them.
    logits = np.array([[[[0.0, 0.0]], [[-1.0, 2.0]]]], np.float32)
    np.testing.assert_array_equal(labels_at(logits, (1, 4)), [[[0, 0, 1, 1]]])


def test_a_third_class_may_be_largest_between_two_others():
    logits = np.array([[[[5.0, 0.0]], [[0.0, 5.0]], [[4.0, 4.0]]]], np.float32)
    assert labels_at(logits, (1, 8))[0, 0].tolist() == [0, 0, 0, 2, 2, 1, 1, 1]


@pytest.mark.parametrize("sides", SIDES)
def test_labels_are_those_of_interpolated_logits(sides):
    coarse = torch.randn(2, 5, 6, 6, generator=torch.Generator().manual_seed(0))
    logits = F.interpolate(coarse, size=(24, 24), mode="bilinear")  # regions of a class, with borders between them
    full = F.interpolate(logits, size=sides, mode="bilinear", align_corners=False)
    labels, expected = labels_at(logits.numpy(), sides), full.argmax(dim=1).numpy()
    first, second = full.topk(2, dim=1).values.unbind(1)
    decided = (first - second > 1e-5).numpy()
    np.testing.assert_array_equal(labels[decided], expected[decided])
    assert decided.mean() > 0.99
    assert labels.dtype == np.uint8
