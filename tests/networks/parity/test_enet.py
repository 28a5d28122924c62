# SPDX-License-Identifier: Apache-2.0
"""ENet is the published arithmetic (Paszke et al., arXiv 1606.02147), written plainly with one image channel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.networks import build_network
from tests.networks.parity.layers_in_order import Layers, assert_parity

CLASSES = 3
CONTEXT = [3, "dilated 2", "5 x 1", "dilated 4", 3, "dilated 8", "5 x 1", "dilated 16"]


def initial(layers: Layers, images: Tensor) -> Tensor:
    learned = layers.conv(images, 15, 3, stride=2, padding=1)
    return layers.prelu(layers.norm(torch.cat([learned, F.max_pool2d(images, 3, stride=2, padding=1)], dim=1)))


def conv_norm(layers: Layers, x: Tensor, *shape: object, act: str, **options: int) -> Tensor:
    x = layers.norm(layers.conv(x, *shape, **options))
    return layers.prelu(x) if act == "prelu" else F.relu(x)


def regular(layers: Layers, x: Tensor, kind: object = 3, act: str = "prelu") -> Tensor:
    channels = x.shape[1]
    inner = channels // 4
    y = conv_norm(layers, x, inner, 1, act=act)
    if kind == "5 x 1":
        y = conv_norm(layers, y, inner, (5, 1), act=act)
        y = conv_norm(layers, y, inner, (1, 5), act=act)
    else:
        dilation = 1 if kind == 3 else int(str(kind).split()[1])
        y = conv_norm(layers, y, inner, 3, act=act, dilation=dilation)
    y = x + conv_norm(layers, y, channels, 1, act=act)
    return layers.prelu(y) if act == "prelu" else F.relu(y)


def down(layers: Layers, x: Tensor, out: int) -> tuple[Tensor, Tensor]:
    pooled, indices = F.max_pool2d(x, 2, return_indices=True)
    missing = torch.zeros(len(x), out - x.shape[1], *pooled.shape[2:], dtype=x.dtype)
    inner = x.shape[1] // 4
    y = conv_norm(layers, x, inner, 2, act="prelu", stride=2, padding=0)
    y = conv_norm(layers, y, inner, 3, act="prelu")
    y = conv_norm(layers, y, out, 1, act="prelu")
    return layers.prelu(torch.cat([pooled, missing], dim=1) + y), indices


def up(layers: Layers, x: Tensor, out: int, indices: Tensor) -> Tensor:
    main = F.max_unpool2d(layers.norm(layers.conv(x, out, 1)), indices, 2)
    inner = x.shape[1] // 4
    y = conv_norm(layers, x, inner, 1, act="relu")
    y = F.relu(layers.norm(layers.conv_transposed(y, inner, 2, bias=False, stride=2)))
    y = layers.norm(layers.conv(y, out, 1))  # no activation after the last expansion
    return F.relu(main + y)


def reference(layers: Layers, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, indices_first = down(layers, initial(layers, images), 64)
    for _ in range(4):
        x = regular(layers, x)
    shallow = x
    x, indices_second = down(layers, x, 128)
    for kind in (*CONTEXT, *CONTEXT):
        x = regular(layers, x, kind)
    x = up(layers, x, 64, indices_second)
    for _ in range(2):
        x = regular(layers, x, act="relu")
    deep = x
    x = regular(layers, up(layers, x, 16, indices_first), act="relu")
    return shallow, deep, layers.conv_transposed(x, CLASSES, 3, bias=False, stride=2, padding=1, output_padding=1)


@pytest.mark.parametrize("training", [False, True])
def test_enet_is_the_published_arithmetic(training):
    torch.manual_seed(0)
    images = torch.rand(2, 1, 64, 48, dtype=torch.float64)
    assert_parity(build_network("enet", 1, CLASSES), reference, images, training)
