# SPDX-License-Identifier: Apache-2.0
"""ERFNet is the published arithmetic (Romera et al., IEEE T-ITS 2018), written plainly with one image channel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.networks import build_network
from tests.networks.parity.layers_in_order import Layers, assert_parity

CLASSES, EPS = 3, 1e-3


def down(layers: Layers, x: Tensor, out: int) -> Tensor:
    learned = layers.conv(x, out - x.shape[1], 3, bias=True, stride=2, padding=1)
    return F.relu(layers.norm(torch.cat([learned, F.max_pool2d(x, 2)], dim=1), EPS))


def non_bottleneck_1d(layers: Layers, x: Tensor, dilation: int = 1) -> Tensor:
    channels = x.shape[1]
    y = F.relu(layers.conv(x, channels, (3, 1), bias=True))
    y = F.relu(layers.norm(layers.conv(y, channels, (1, 3), bias=True), EPS))
    y = F.relu(layers.conv(y, channels, (3, 1), bias=True, dilation=(dilation, 1), padding=(dilation, 0)))
    y = layers.norm(layers.conv(y, channels, (1, 3), bias=True, dilation=(1, dilation), padding=(0, dilation)), EPS)
    return F.relu(x + y)


def up(layers: Layers, x: Tensor, out: int) -> Tensor:
    return F.relu(layers.norm(layers.conv_transposed(x, out, 3, stride=2, padding=1, output_padding=1), EPS))


def reference(layers: Layers, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shallow = down(layers, down(layers, images, 16), 64)  # tapped before the five residual blocks
    x = shallow
    for _ in range(5):
        x = non_bottleneck_1d(layers, x)
    x = down(layers, x, 128)
    for dilation in (2, 4, 8, 16, 2, 4, 8, 16):
        x = non_bottleneck_1d(layers, x, dilation)
    deep = up(layers, x, 64)
    for _ in range(2):
        deep = non_bottleneck_1d(layers, deep)
    x = up(layers, deep, 16)
    for _ in range(2):
        x = non_bottleneck_1d(layers, x)
    return shallow, deep, layers.conv_transposed(x, CLASSES, 2, stride=2)


@pytest.mark.parametrize("training", [False, True])
def test_erfnet_is_the_published_arithmetic(training):
    torch.manual_seed(0)
    images = torch.rand(2, 1, 64, 48, dtype=torch.float64)
    assert_parity(build_network("erfnet", 1, CLASSES), reference, images, training)
