# SPDX-License-Identifier: Apache-2.0
"""The segmentation losses are the published arithmetic: loops over random logits."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.training import segmentation_loss

BATCH, CLASSES, SMOOTH = 2, 4, 1e-5  # the last is MONAI's, in numerator and denominator


def written_out(balance: float) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    """Random logits and labels (the last class absent), their cross-entropy, and the Dice loss of the foreground.

    In the cross-entropy a pixel of class k, which is the share p_k of the batch, weighs p_k^-balance.
    """
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(BATCH, CLASSES, 5, 3, generator=generator, dtype=torch.float64)
    labels = (torch.rand(BATCH, 1, 5, 3, generator=generator).square() * (CLASSES - 1)).long()
    kinds = labels.flatten().tolist()
    assert kinds.count(0) > 2 * kinds.count(1) > 0  # else a balance would weigh them almost alike
    assert kinds.count(2) > 0
    entropy, weights = 0.0, 0.0
    overlap, likely, labelled = ([0.0] * CLASSES for _ in range(3))
    for scores, label in zip(logits.permute(0, 2, 3, 1).reshape(-1, CLASSES).tolist(), kinds, strict=True):
        powers = [math.exp(score) for score in scores]
        shares = [power / sum(powers) for power in powers]
        weight = (kinds.count(label) / len(kinds)) ** -balance
        entropy, weights = entropy - weight * math.log(shares[label]), weights + weight
        labelled[label] += 1
        overlap[label] += shares[label]
        likely = [total + share for total, share in zip(likely, shares, strict=True)]
    dice = [(2 * overlap[k] + SMOOTH) / (likely[k] + labelled[k] + SMOOTH) for k in range(1, CLASSES)]
    return logits, labels, entropy / weights, 1 - sum(dice) / len(dice)


balances = pytest.mark.parametrize("balance", [0, 0.5, 1])


@balances
def test_cross_entropy(balance):
    logits, labels, entropy, _ = written_out(balance)
    assert float(segmentation_loss("ce", balance)(logits, labels)) == pytest.approx(entropy)


@balances
def test_dice_over_the_batch_plus_cross_entropy(balance):
    """The Dice loss counts each organ the same already; a balance changes the cross-entropy alone."""
    logits, labels, entropy, dice = written_out(balance)
    assert float(segmentation_loss("dice_ce", balance)(logits, labels)) == pytest.approx(dice + entropy)
