# SPDX-License-Identifier: Apache-2.0
"""FANet is the published arithmetic (layer table of the Graph Flow paper's code), written plainly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.networks import FANet
from tests.networks.parity.layers_in_order import Layers, assert_parity

CLASSES = 3


def conv_norm(layers: Layers, x: Tensor, *shape: object) -> Tensor:
    return layers.norm(layers.conv(x, *shape))


def selective_kernel(layers: Layers, x: Tensor) -> Tensor:
    channels = x.shape[1]
    wide, narrow = (F.relu(layers.norm(layers.conv(x, channels, kernel, bias=True))) for kernel in (5, 3))
    pooled = F.adaptive_avg_pool2d(wide + narrow, 1)
    squeezed = F.relu(layers.norm(layers.conv(pooled, channels // 2, 1, bias=True)))
    scores = [layers.conv(squeezed, channels, 1, bias=True) for _ in ("wide", "narrow")]
    share = torch.softmax(torch.stack(scores), dim=0)
    return share[0] * wide + share[1] * narrow


def selective_kernel_block(layers: Layers, x: Tensor, out: int, project: bool) -> Tensor:
    y = selective_kernel(layers, F.relu(conv_norm(layers, x, out, 1)))
    y = conv_norm(layers, F.relu(layers.norm(y)), out, 1)
    return F.relu(y + (conv_norm(layers, x, out, 1) if project else x))


def double(layers: Layers, x: Tensor, out: int) -> Tensor:
    return selective_kernel_block(layers, selective_kernel_block(layers, x, out, True), out, False)


def dual_direction(layers: Layers, x: Tensor, grids: tuple[int, int], gated: bool = False) -> Tensor:
    channels, size = x.shape[1], x.shape[2:]
    x1, x2 = (F.relu(conv_norm(layers, x, channels, 1)) for _ in range(2))
    maps = [conv_norm(layers, x1, channels, 3)]
    for grid in grids:
        pooled = conv_norm(layers, F.adaptive_avg_pool2d(x1, grid), channels // 2 if gated else channels, 3)
        maps.append(F.interpolate(pooled, size))  # nearest, the default
    merged = torch.cat(maps, dim=1) if gated else maps[0] + maps[1] + maps[2]
    local = F.relu(conv_norm(layers, F.relu(merged), channels, 3))
    row = F.interpolate(conv_norm(layers, F.adaptive_avg_pool2d(x2, (1, None)), channels, (1, 3)), size)
    column = F.interpolate(conv_norm(layers, F.adaptive_avg_pool2d(x2, (None, 1)), channels, (3, 1)), size)
    strips = F.relu(conv_norm(layers, F.relu(row + column), channels, 3))
    if gated:
        strips = x * strips
    return F.relu(x + conv_norm(layers, torch.cat([local, strips], dim=1), channels, 1))


def reference(layers: Layers, images: Tensor, base: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    e1 = double(layers, images, base)
    e2 = double(layers, F.max_pool2d(e1, 2), 2 * base)
    e3 = double(layers, F.max_pool2d(e2, 2), 4 * base)
    e4 = double(layers, F.max_pool2d(e3, 2), 8 * base)
    u3 = layers.conv_transposed(e4, 4 * base, 2, stride=2)
    d3 = dual_direction(layers, double(layers, torch.cat([u3, e3], dim=1), 4 * base), (3, 6))
    u2 = layers.conv_transposed(d3, 2 * base, 2, stride=2)
    d2 = dual_direction(layers, double(layers, torch.cat([u2, e2], dim=1), 2 * base), (12, 18))
    u1 = layers.conv_transposed(d2, base, 2, stride=2)
    d1 = double(layers, torch.cat([u1, e1], dim=1), base)
    return e3, u3, layers.conv(dual_direction(layers, d1, (3, 6), gated=True), CLASSES, 1, bias=True)


@pytest.mark.parametrize("training", [False, True])
def test_fanet_is_the_published_arithmetic(training):
    torch.manual_seed(0)
    images = torch.rand(2, 1, 48, 32, dtype=torch.float64)
    network = FANet(1, CLASSES, width=0.125)
    assert_parity(network, lambda layers, x: reference(layers, x, base=8), images, training)


def test_full_width_has_the_layers_of_the_published_table():
    """At width 1 each convolution is the one that the reference names; shapes alone, without memory."""
    with torch.device("meta"):
        layers = Layers(FANet(1, CLASSES).eval())
        taps_and_logits = reference(layers, torch.empty(1, 1, 256, 256))
    assert layers.all_taken()
    assert [tuple(one.shape[1:]) for one in taps_and_logits] == [(256, 64, 64), (256, 64, 64), (CLASSES, 256, 256)]
