# SPDX-License-Identifier: Apache-2.0
"""The segmentation losses are the published arithmetic: loops over random logits."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.training import segmentation_loss

BATCH, CLASSES, SMOOTH = 2, 4, 1e-5  # the last is MONAI's, in numerator and denominator


def written_out() -> tuple[torch.Tensor, torch.Tensor, float, float]:
    """Random logits and labels (the last class absent), their cross-entropy, and the Dice loss of the foreground."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(BATCH, CLASSES, 5, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, CLASSES - 1, (BATCH, 1, 5, 3), generator=generator)
    entropy, count = 0.0, 0
    overlap, likely, labelled = ([0.0] * CLASSES for _ in range(3))
    for scores, label in zip(logits.permute(0, 2, 3, 1).reshape(-1, CLASSES).tolist(), labels.flatten(), strict=True):
        powers = [math.exp(score) for score in scores]
        shares = [power / sum(powers) for power in powers]
        entropy, count = entropy - math.log(shares[label]), count + 1
        labelled[label] += 1
        overlap[label] += shares[label]
        likely = [total + share for total, share in zip(likely, shares, strict=True)]
    dice = [(2 * overlap[k] + SMOOTH) / (likely[k] + labelled[k] + SMOOTH) for k in range(1, CLASSES)]
    return logits, labels, entropy / count, 1 - sum(dice) / len(dice)


def test_cross_entropy():
    logits, labels, entropy, _ = written_out()
    assert float(segmentation_loss("ce")(logits, labels)) == pytest.approx(entropy)


def test_dice_over_the_batch_plus_cross_entropy():
    logits, labels, entropy, dice = written_out()
    assert float(segmentation_loss("dice_ce")(logits, labels)) == pytest.approx(dice + entropy)
