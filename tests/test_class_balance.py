# SPDX-License-Identifier: Apache-2.0
"""Weights of pixels by how rare their class is."""

from __future__ import annotations

import pytest
import torch

from pipeline.class_balance import check_balance, known_classes, pixel_weights
from pipeline.errors import InputError

# 12 pixels of class 0, 3 of class 1, 1 of class 3; class 2 is not there.
CLASSES = torch.tensor([0] * 12 + [1] * 3 + [3]).reshape(1, 4, 4)


@pytest.mark.parametrize(
    ("balance", "expected"),
    [
        (0.0, (1.0, 1.0, 1.0)),
        (1.0, (16 / 12 / 3, 16 / 3 / 3, 16 / 3)),  # a third of all weight for each of three classes
        # p = 12/16, 3/16, 1/16: weights p^-1/2 over the sum of sqrt(p) = (sqrt 12 + sqrt 3 + 1) / 4
        (0.5, tuple(4 / (12**0.5 + 3**0.5 + 1) * 4 / pixels**0.5 for pixels in (12, 3, 1))),
    ],
)
def test_weights_by_hand(balance, expected):
    weights = pixel_weights(CLASSES, 4, balance).flatten()
    torch.testing.assert_close(weights[[0, 12, 15]], torch.tensor(expected))


@pytest.mark.parametrize("balance", [0.0, 0.3, 0.5, 1.0])
def test_weights_have_a_mean_of_one_and_each_class_counts_by_a_power_of_its_area(balance):
    classes = torch.randint(3, (4, 9, 9), generator=torch.Generator().manual_seed(0)).clamp(min=1)
    weights = pixel_weights(classes, 5, balance)
    assert float(weights.mean()) == pytest.approx(1, rel=1e-6)
    one, two = (classes == 1).sum(), (classes == 2).sum()
    ratio = weights[classes == 1].sum() / weights[classes == 2].sum()
    assert float(ratio) == pytest.approx(float(one / two) ** (1 - balance), rel=1e-5)


def test_teacher_stands_in_where_nobody_has_labelled():
    labels = torch.tensor([0, -1, 2, 255]).reshape(1, 1, 2, 2)
    logits = torch.zeros(1, 3, 2, 2)
    logits[:, 1] = 1.0
    assert known_classes(labels, logits).flatten().tolist() == [0, 1, 2, 1]


@pytest.mark.parametrize("balance", [-0.1, 1.1, float("nan"), True, "half"])
def test_balance_outside_its_range_is_refused(balance):
    with pytest.raises(InputError, match="kd: balance is"):
        check_balance("kd", balance)
