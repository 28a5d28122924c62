# SPDX-License-Identifier: Apache-2.0
"""Segmentation losses: by hand, against MONAI's, and with classes that count by more than their area."""

from __future__ import annotations

from math import log, sqrt

import pytest
import torch
from monai.losses import DiceCELoss

from pipeline.errors import InputError
from pipeline.training import segmentation_loss

# Three pixels of class 0, one of class 1; the student gives class 0 a probability of 3/4 everywhere.
LOGITS = torch.tensor([log(3.0), 0.0]).reshape(1, 2, 1, 1).expand(1, 2, 2, 2)
LABELS = torch.tensor([[[[0, 0], [0, 1]]]])
OF_0, OF_1 = log(4 / 3), log(4)


def test_losses_by_hand():
    logits, labels = torch.zeros(1, 2, 1, 2), torch.tensor([[[[0, 1]]]])
    torch.testing.assert_close(segmentation_loss("ce")(logits, labels), torch.tensor(2.0).log())
    # Dice of the foreground: 1 - (2 * 0.5) / (0.5 + 0.5 + 1) = 0.5, beside the same cross-entropy.
    expected = 0.5 + torch.tensor(2.0).log()
    torch.testing.assert_close(segmentation_loss("dice_ce")(logits, labels), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("balance", "expected"),
    [
        (0, (3 * OF_0 + OF_1) / 4),
        (0.5, (sqrt(3) * OF_0 + OF_1) / (sqrt(3) + 1)),
        (1, (OF_0 + OF_1) / 2),
    ],
)
@pytest.mark.parametrize("name", ["ce", "dice_ce"])
def test_balanced_losses_by_hand(name, balance, expected):
    # Dice of the foreground: 1 - 2 * 1/4 / (4 * 1/4 + 1) = 3/4, whatever the balance.
    expected += 0.75 if name == "dice_ce" else 0
    assert float(segmentation_loss(name, balance)(LOGITS, LABELS)) == pytest.approx(expected, rel=1e-4)


def test_without_balance_dice_ce_is_monais():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(3, 4, 9, 9, generator=generator), torch.randint(4, (3, 1, 9, 9), generator=generator)
    monais = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    assert torch.equal(segmentation_loss("dice_ce")(logits, labels), monais(logits, labels))


def test_full_balance_gives_a_rare_class_the_gradient_of_a_common_one():
    labels = torch.zeros(1, 1, 10, 10, dtype=torch.uint8)
    labels[..., 0, 0] = 1
    logits = torch.zeros(1, 2, 10, 10, requires_grad=True)
    segmentation_loss("ce", 1.0)(logits, labels).backward()
    by_pixel = logits.grad[:, :1].abs()
    torch.testing.assert_close(by_pixel[labels == 1].sum(), by_pixel[labels == 0].sum())


@pytest.mark.parametrize("name", ["ce", "dice_ce"])
def test_bad_balance_and_unknown_names_are_refused(name):
    with pytest.raises(InputError, match=r"the segmentation loss: balance is 2; it must be from 0"):
        segmentation_loss(name, 2)
    with pytest.raises(InputError, match="unknown loss 'focal'; choose one of ce, dice_ce"):
        segmentation_loss("focal")
