# SPDX-License-Identifier: Apache-2.0
"""Which modules can be tapped, by hand on a network of known outputs, and what a wrong tap is answered."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.errors import InputError
from pipeline.networks import build_network, distinct, feature_maps

MONAI = "monai.networks.nets."


class Maps(nn.Module):
    """A network of which every kind of output is known."""

    in_channels, out_channels, spatial_dims, size_divisor, fixed_size = 1, 2, 2, 2, False

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Identity())
        self.norm, self.act = nn.BatchNorm2d(3), nn.ReLU(inplace=True)
        self.down = nn.Conv2d(3, 4, (2, 1), stride=(2, 1))
        self.twice = nn.Conv2d(4, 4, 1)
        self.vector = nn.AdaptiveAvgPool2d(7)
        self.up, self.head = nn.Upsample(scale_factor=(2.0, 1.0)), nn.Conv2d(4, 2, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.twice(self.twice(self.down(self.act(self.norm(self.first(images))))))
        self.vector(features)
        return self.head(self.up(features))


def test_feature_maps_by_hand():
    maps = feature_maps(Maps())
    assert [(one.name, one.channels, one.strides) for one in maps] == [
        ("first.0", 3, (1, 1)),
        ("first.1", 3, (1, 1)),
        ("first", 3, (1, 1)),
        ("act", 3, (1, 1)),  # norm is not there: act changes what it gave
        ("down", 4, (2, 1)),  # twice runs twice, vector gives 7 x 7, head the logits
        ("up", 4, (1, 1)),
    ]
    assert [str(one) for one in distinct(maps)] == [
        "first (3 channels, stride 1)",
        "act (3 channels, stride 1)",
        "down (4 channels, stride 2 x 1)",
        "up (4 channels, stride 1)",
    ]


def test_any_modules_can_be_taps():
    taps = ["down_layers.1", "down_layers.3", "up_layers.0"]
    network = build_network(MONAI + "SegResNet", init_filters=8, taps=taps)
    assert (network.taps, network.tap_channels) == (tuple(taps), (16, 64, 32))
    taps = ["stage1", "stage2", "stage4"]
    own = build_network("enet", taps=taps)
    assert (own.taps, own.tap_channels, own.arguments["taps"]) == (tuple(taps), (64, 128, 64), taps)
    assert build_network(**own.arguments).tap_channels == own.tap_channels


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        (
            ["down_layers.2", "up_layer.0"],
            r"has no module 'up_layer.0'; .*up_layers.0 \(32 channels, stride 4",
        ),
        (["down_layers.2", "up_samples"], "gives no feature map to tap at 'up_samples'"),
        (["down_layers.2", ""], "gives no feature map to tap at ''"),
        (["down_layers.2", 3], "has no module '3'"),
        (["down_layers.2"], "list of two or more"),
        ("up_layers.0", "list of two or more"),
        (7, "list of two or more"),
        (["up_layers.0", "up_layers.0"], "each module once"),
    ],
)
def test_taps_that_are_none(taps, message):
    with pytest.raises(InputError, match=message):
        build_network(MONAI + "SegResNet", taps=taps)
