# SPDX-License-Identifier: Apache-2.0
"""The paraphraser and the discriminator are the published arithmetic, written plainly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.distillation.discriminator import Discriminator
from pipeline.networks import Paraphraser
from tests.networks.parity.layers_in_order import Layers, randomise

CLASSES = 3


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.1 * x)


def test_paraphraser_is_the_published_arithmetic():
    torch.manual_seed(0)
    paraphraser, tap = randomise(Paraphraser(8, 3)), torch.randn(2, 8, 7, 5, dtype=torch.float64)
    layers = Layers(paraphraser)
    factor = tap
    for out in (8, 3, 3):
        factor = leaky(layers.conv(factor, out, 3, bias=True))
    rebuilt = factor
    for out in (3, 8, 8):
        rebuilt = leaky(layers.conv_transposed(rebuilt, out, 3, padding=1))
    assert layers.all_taken()
    torch.testing.assert_close(paraphraser.encode(tap), factor, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(paraphraser(tap), rebuilt, rtol=1e-9, atol=1e-10)


def normed_conv(layers: Layers, x: Tensor, out: int) -> Tensor:
    """A convolution by its weight over the estimate of that one's largest singular value (Miyato et al., 2018).

    In training the estimate takes one step of the power method first.
    """
    bias, weight, vectors = layers.take()["bias"], layers.take()["original"], layers.take()
    assert weight.shape == (out, x.shape[1], 4, 4)
    matrix, left, right = weight.flatten(1), vectors["_u"], vectors["_v"]
    if layers.training:
        left = matrix @ right / (matrix @ right).norm()
        right = matrix.T @ left / (matrix.T @ left).norm()
    return F.conv2d(x, weight / (left @ matrix @ right), bias, stride=2, padding=1)


def self_attention(layers: Layers, x: Tensor) -> Tensor:
    gamma, channels = layers.take()["gamma"], x.shape[1]
    assert float(gamma) != 0
    query, key = (layers.conv(x, channels // 8, 1, bias=True).flatten(2) for _ in range(2))
    value = layers.conv(x, channels, 1, bias=True).flatten(2)
    attention = torch.einsum("bci,bcj->bij", query, key).softmax(dim=2)  # over the places j that answer
    return gamma * torch.einsum("bij,bcj->bci", attention, value).reshape(x.shape) + x


def reference(layers: Layers, logits: Tensor) -> Tensor:
    x = torch.tanh(logits)
    for out in (64, 128, 256):
        x = leaky(normed_conv(layers, x, out))
    x = self_attention(layers, x)
    x = self_attention(layers, leaky(normed_conv(layers, x, 512)))
    return layers.conv(x, 1, 4, bias=True, padding=0)


@pytest.mark.parametrize("training", [False, True])
def test_discriminator_is_the_published_arithmetic(training):
    torch.manual_seed(0)
    discriminator = randomise(Discriminator(CLASSES)).train(training)
    logits = torch.randn(2, CLASSES, 96, 64, dtype=torch.float64)
    layers = Layers(discriminator)
    with torch.no_grad():
        expected, found = reference(layers, logits), discriminator(logits)
    assert layers.all_taken()
    assert found.shape == (2, 1, 3, 1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
