# SPDX-License-Identifier: Apache-2.0
"""Segmentation losses against the label, by the names that users type."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.losses import DiceLoss
from torch import nn
from torch.nn import functional as F

from pipeline.class_balance import check_balance, pixel_weights
from pipeline.errors import InputError
from pipeline.processes.global_batch import GlobalBatchLoss


class PixelCrossEntropy(nn.Module):
    """Cross-entropy over pixels for MONAI's label shape: the mean over batch and pixels, each weighed by its class.

    Args:
        balance: 0 (the paper's) counts each pixel the same, 1 counts each class the same; see `class_balance`.
    """

    def __init__(self, balance: float = 0.0) -> None:
        super().__init__()
        self.balance = check_balance("the segmentation loss", balance)

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of logits (B, K, ...) against integer labels (B, 1, ...); collective where it balances."""
        classes = labels.squeeze(1).long()
        if self.balance == 0:
            return F.cross_entropy(logits, classes)
        weights = pixel_weights(classes, logits.shape[1], self.balance)
        return (weights * F.cross_entropy(logits, classes, reduction="none")).mean()


class DiceCrossEntropy(nn.Module):
    """The sum of the Dice loss over organs and `PixelCrossEntropy`, as MONAI's `DiceCELoss` where `balance` is 0.

    The Dice loss is computed over the whole batch, not for each slice: most slices lack most organs, and the Dice of an
    organ that a slice lacks is either 0 or 1. The Dice loss counts each organ the same already, so `balance` acts only
    on the cross-entropy.
    """

    def __init__(self, balance: float = 0.0) -> None:
        super().__init__()
        self.dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
        self.cross_entropy = PixelCrossEntropy(balance)

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of logits (B, K, ...) against integer labels (B, 1, ...)."""
        return self.dice(logits, labels) + self.cross_entropy(logits, labels)


LOSSES: dict[str, Callable[[float], nn.Module]] = {
    "ce": PixelCrossEntropy,
    "dice_ce": lambda balance: GlobalBatchLoss(DiceCrossEntropy(balance)),
}


def segmentation_loss(name: str, balance: float = 0.0) -> nn.Module:
    """Return the loss "ce" (the paper's) or "dice_ce" (MONAI's sum of Dice and cross-entropy, kinder to small organs).

    Args:
        name: "ce" or "dice_ce".
        balance: weight of classes in the cross-entropy: 0 counts pixels alike, 1 classes alike, 0.5 goes by the root of
            their area.

    Raises:
        InputError: the name is unknown, or the balance is not from 0 to 1.
    """
    if name not in LOSSES:
        raise InputError(f"unknown loss '{name}'; choose one of {', '.join(LOSSES)}")
    return LOSSES[name](balance)
