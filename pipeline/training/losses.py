# SPDX-License-Identifier: Apache-2.0
"""Segmentation losses against the label, by the names that users type."""

from __future__ import annotations

from typing import Any

import torch
from monai.losses import DiceCELoss
from torch import nn

from pipeline.errors import InputError
from pipeline.whole_batch import WholeBatchLoss


class PixelCrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy over pixels for MONAI's label shape: the mean over batch and pixels, no class weights (paper)."""

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of logits (B, K, ...) against integer labels (B, 1, ...)."""
        return super().forward(logits, labels.squeeze(1).long())


def _dice_ce() -> nn.Module:
    # Batch-wise Dice: most slices lack most organs, and a per-slice Dice of an absent organ is all or nothing.
    return WholeBatchLoss(DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True))


LOSSES: dict[str, Any] = {"ce": PixelCrossEntropy, "dice_ce": _dice_ce}


def segmentation_loss(name: str) -> nn.Module:
    """Return the loss "ce" (the paper's) or "dice_ce" (MONAI's sum of Dice and cross-entropy, kinder to small organs).

    Raises:
        InputError: the name is unknown.
    """
    if name not in LOSSES:
        raise InputError(f"unknown loss '{name}'; choose one of {', '.join(LOSSES)}")
    return LOSSES[name]()
