# SPDX-License-Identifier: Apache-2.0
"""Mobile U-Net is MobileNetV2 (Sandler et al., arXiv 1801.04381) under the light decoder, written plainly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.networks import build_network
from tests.networks.parity.layers_in_order import Layers, assert_parity

CLASSES = 3
# The encoder, block by block: channels and stride.
BLOCKS = {
    "x2": [(24, 2), (24, 1)],
    "x3": [(32, 2), (32, 1), (32, 1)],
    "x4": [(64, 2), (64, 1), (64, 1), (64, 1), (96, 1), (96, 1), (96, 1)],
    "x5": [(160, 2), (160, 1), (160, 1), (320, 1)],
}


def conv_relu6(layers: Layers, x: Tensor, *shape: int, **options: int) -> Tensor:
    return F.relu6(layers.norm(layers.conv(x, *shape, **options)))


def inverted_residual(layers: Layers, x: Tensor, out: int, stride: int = 1, expansion: int = 6) -> Tensor:
    wide = expansion * x.shape[1]
    y = conv_relu6(layers, x, wide, 1) if expansion > 1 else x
    y = conv_relu6(layers, y, wide, 3, stride=stride, padding=1, groups=wide)
    y = layers.norm(layers.conv(y, out, 1))
    return x + y if stride == 1 and x.shape[1] == out else y


def decode(layers: Layers, x: Tensor, skip: Tensor) -> Tensor:
    channels = skip.shape[1]
    x = layers.conv_transposed(x, channels, 4, stride=2, padding=1)
    return inverted_residual(layers, torch.cat([skip, x], dim=1), channels)


def reference(layers: Layers, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = conv_relu6(layers, images, 32, 3, stride=2, padding=1)
    skips = {"x1": inverted_residual(layers, x, 16, expansion=1)}
    x = skips["x1"]
    for name, blocks in BLOCKS.items():
        for channels, stride in blocks:
            x = inverted_residual(layers, x, channels, stride)
        skips[name] = x
    x = conv_relu6(layers, x, 1280, 1)
    x = decode(layers, decode(layers, x, skips["x4"]), skips["x3"])
    deep = decode(layers, x, skips["x2"])
    x = decode(layers, deep, skips["x1"])
    logits = layers.conv(layers.conv(x, 3, 1, bias=True), CLASSES, 1, bias=True)  # nothing between the two
    logits = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
    return skips["x2"], deep, logits


@pytest.mark.parametrize("training", [False, True])
def test_mobile_unet_is_the_published_arithmetic(training):
    torch.manual_seed(0)
    images = torch.rand(2, 1, 64, 96, dtype=torch.float64)
    assert_parity(build_network("mobile_unet", 1, CLASSES), reference, images, training)
