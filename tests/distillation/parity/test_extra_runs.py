# SPDX-License-Identifier: Apache-2.0
"""Losses that run the networks again are the published arithmetic, image by image, with Jacobians written out.

Both networks are in evaluation mode, so that an image's result is its own.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd.functional import jacobian
from torch.nn import functional as F

from pipeline.distillation.method import NetworkPair
from pipeline.distillation.methods.bss import BoundarySamples
from pipeline.distillation.methods.lwm import LearningWithoutMemorizing
from pipeline.distillation.methods.sobolev import SobolevTraining
from tests.distillation.parity.plain_formulas import divergence, mean, pixels, softmax, unit
from tests.distillation.tiny_pair import tiny_batch, tiny_pair, views


@pytest.fixture
def networks() -> NetworkPair:
    found = tiny_pair()
    found.student.eval()
    return found


def image_gradient(network: torch.nn.Module, image: torch.Tensor, classes: torch.Tensor) -> list[float]:
    """The gradient of the summed logits of one class per pixel, of length 1."""
    return unit(jacobian(lambda x: network(x).gather(1, classes).sum(), image).flatten().tolist())


def test_sobolev(networks):
    images, labels = tiny_batch()
    losses = []
    for image in images.split(1):
        classes = networks.teacher(image).argmax(dim=1, keepdim=True)
        one, other = (image_gradient(network, image, classes) for network in (networks.student, networks.teacher))
        losses.append(sum((a - b) ** 2 for a, b in zip(one, other, strict=True)))
    found = SobolevTraining(networks)(*views(networks, images), labels)["sobolev"]
    assert float(found) == pytest.approx(mean(losses))


def grad_cam(network: torch.nn.Module, image: torch.Tensor, label: torch.Tensor, kind: int) -> list[float]:
    """relu(sum_c a_c F_c), a_c the mean over places of d y / d F_c, y the class's logits summed over its labels."""

    def score(deep: torch.Tensor) -> torch.Tensor:
        logits = F.interpolate(network.head(F.hardtanh(deep, -9, 9)), image.shape[2:])
        return logits[:, kind][label[:, 0] == kind].sum()

    features = network.deep(network.shallow(image)).detach()
    gradients = jacobian(score, features)[0]
    importance = [mean(channel.flatten().tolist()) for channel in gradients]
    return [max(0, sum(a * f for a, f in zip(importance, pixel, strict=True))) for pixel in pixels(features)]


def test_lwm(networks):
    """A single class in each image, the rest without label, so that the draw of a class has one outcome."""
    images, labels = tiny_batch()
    kinds = (1, 2)
    labels = torch.stack([torch.where(label == kind, kind, -1) for label, kind in zip(labels, kinds, strict=True)])
    losses = []
    for image, label, kind in zip(images.split(1), labels.split(1), kinds, strict=True):
        mine, theirs = (grad_cam(network, image, label, kind) for network in (networks.student, networks.teacher))
        if any(theirs):
            mine, theirs = unit(mine) if any(mine) else mine, unit(theirs)
            losses.append(sum(abs(a - b) for a, b in zip(mine, theirs, strict=True)) / math.sqrt(len(mine)))
    assert losses
    found = LearningWithoutMemorizing(networks)(*views(networks, images), labels)["lwm"]
    assert float(found) == pytest.approx(mean(losses))


def moved(teacher: torch.nn.Module, image: torch.Tensor, steps: int, step: float) -> torch.Tensor:
    """x <- x - step * gap * g / |g|, the step in standard deviations of the image, within its range of values."""
    logits = teacher(image)
    order = logits.argsort(dim=1, descending=True)
    low, high, length = image.min(), image.max(), step * image.std(correction=0) * math.sqrt(image.numel())

    def gaps(x: torch.Tensor) -> torch.Tensor:
        likely = torch.exp(teacher(x)) / torch.exp(teacher(x)).sum(dim=1, keepdim=True)
        return torch.relu(likely.gather(1, order[:, :1]) - likely.gather(1, order[:, 1:2]))

    x = image
    for _ in range(steps):
        gradient = jacobian(lambda x: gaps(x).sum(), x)
        x = (x - length * gaps(x).mean().detach() * gradient / gradient.norm()).clamp(low, high)
    return x


def test_bss(networks):
    images, labels = tiny_batch()
    losses = []
    for image in images.split(1):
        x = moved(networks.teacher, image, steps=2, step=0.2)
        assert float((x - image).abs().max()) > 1e-3
        both = zip(pixels(networks.teacher(x).detach()), pixels(networks.student(x).detach()), strict=True)
        losses.append(9 * mean(divergence(softmax(theirs, 3), softmax(mine, 3)) for theirs, mine in both))
    method = BoundarySamples(networks, temperature=3, steps=2, step=0.2, share=1)
    assert float(method(*views(networks, images), labels)["bss"]) == pytest.approx(mean(losses), rel=1e-4)
