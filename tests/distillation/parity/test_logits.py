# SPDX-License-Identifier: Apache-2.0
"""Losses on logits are the published arithmetic: each formula by loops over random logits.

Mutual learning, whose peer runs on the images, is compared in `test_distillation_dml.py`.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pipeline.distillation.methods.adversarial import AdversarialDistillation, discriminator_loss
from pipeline.distillation.methods.kd import KnowledgeDistillation
from pipeline.distillation.methods.logits_mse import LogitsMatching
from pipeline.distillation.methods.skd import PixelPairDistillation
from tests.distillation.parity.plain_formulas import CLASSES, divergence, mean, pair, pixels, softmax, terms, view

STUDENT, TEACHER = view(0, (4,)), view(100, (4,))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("balance", [0, 0.5, 1])
@pytest.mark.parametrize("labelled", [True, False])
def test_kd(temperature, balance, labelled):
    """Class k of share p_k weighs p_k^-balance a pixel, by what keeps the mean weight at one.

    Where nobody has labelled a pixel, its class is the teacher's likeliest.
    """
    labels = torch.randint(0, 2, (2, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    labels[0, 0, 0, :3] = 2
    if not labelled:
        labels[1] = -1
    total, weights, counts = 0.0, 0.0, [0] * CLASSES
    found = []
    for mine, theirs, label in zip(
        pixels(STUDENT.logits), pixels(TEACHER.logits), labels.flatten().tolist(), strict=True
    ):
        kind = label if label >= 0 else theirs.index(max(theirs))
        counts[kind] += 1
        found.append((kind, divergence(softmax(theirs, temperature), softmax(mine, temperature))))
    for kind, loss in found:
        weight = (counts[kind] / len(found)) ** -balance
        total, weights = total + weight * loss, weights + weight
    method = KnowledgeDistillation(pair((4,), (4,)), temperature=temperature, balance=balance)
    expected = temperature**2 * total / weights
    assert terms(method, STUDENT, TEACHER, labels)["kd"] == pytest.approx(expected, rel=1e-5)


def test_logits_mse():
    both = zip(STUDENT.logits.flatten().tolist(), TEACHER.logits.flatten().tolist(), strict=True)
    expected = mean((mine - theirs) ** 2 for mine, theirs in both)
    assert terms(LogitsMatching(pair((4,), (4,))), STUDENT, TEACHER)["logits_mse"] == pytest.approx(expected)


def test_skd_pixel():
    """All labels are of one class, so that no balance of classes has anything to weigh."""
    expected = -mean(
        sum(p * math.log(q) for p, q in zip(softmax(theirs), softmax(mine), strict=True))
        for mine, theirs in zip(pixels(STUDENT.logits), pixels(TEACHER.logits), strict=True)
    )
    method = PixelPairDistillation(pair((4,), (4,)))
    assert terms(method, STUDENT, TEACHER)["skd_pixel"] == pytest.approx(expected, rel=1e-5)


class Squares(nn.Module):
    """Scores (w . x)^2 of each pixel x: the gradient there is 2 (w . x) w."""

    weights = (0.3, -0.2, 0.5)

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return sum(w * logits[:, k : k + 1] for k, w in enumerate(self.weights)).square()


def score(pixel: list[float]) -> float:
    return sum(w * x for w, x in zip(Squares.weights, pixel, strict=True)) ** 2


def test_adversarial_term_of_the_student():
    method = AdversarialDistillation(nn.Sequential(Squares(), nn.Conv2d(1, 1, 1)), total_steps=1)
    nn.init.ones_(method.discriminator[1].weight)
    nn.init.zeros_(method.discriminator[1].bias)
    expected = -mean(map(score, pixels(STUDENT.logits)))
    found = method(STUDENT, TEACHER, torch.zeros(1))["adversarial"]
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_hinge():
    expected = mean(max(0, 1 - score(pixel)) for pixel in pixels(TEACHER.logits))
    expected += mean(max(0, 1 + score(pixel)) for pixel in pixels(STUDENT.logits))
    assert float(discriminator_loss(Squares(), TEACHER.logits, STUDENT.logits, "hinge")) == pytest.approx(expected)


def test_wgan_with_gradient_penalty():
    """The penalty of an image is (|gradient| - 1)^2 between both predictions, the gradient's length over all pixels."""
    real, fake = TEACHER.logits, STUDENT.logits
    torch.manual_seed(5)
    found = discriminator_loss(Squares(), real, fake, "wgan-gp")
    torch.manual_seed(5)
    mix = torch.rand(2, 1, 1, 1, dtype=torch.float64)
    length = math.sqrt(sum(w**2 for w in Squares.weights))
    penalties = []
    for image in mix * real + (1 - mix) * fake:
        gradients = [2 * math.sqrt(score(pixel)) * length for pixel in pixels(image[None])]
        penalties.append((math.sqrt(sum(gradient**2 for gradient in gradients)) - 1) ** 2)
    expected = mean(map(score, pixels(fake))) - mean(map(score, pixels(real))) + 10 * mean(penalties)
    assert float(found) == pytest.approx(expected)
