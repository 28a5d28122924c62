# SPDX-License-Identifier: Apache-2.0
"""Parameters and multiply-adds, counted by hand for single layers; the battery compares whole networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.errors import InputError
from pipeline.networks import build_network, multiply_adds, parameter_count


class Attention(nn.Module):
    """Rows of an image that attend to each other: two products of matrices and no parameter."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(images, images, images)


def test_parameters_by_hand():
    shared = nn.Conv2d(2, 2, 3)  # 2 * 2 * 9 + 2 = 38
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), shared, shared, nn.PReLU())
    assert parameter_count(network) == (1 * 2 * 9 + 2) + 2 * 2 + 38 + 1


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        # values of the output x input channels of the group x places of the kernel
        (nn.Conv2d(1, 2, 3, padding=1), (1, 4, 5), 4 * 5 * 2 * 1 * 9),
        (nn.Conv2d(2, 4, 3, stride=2, padding=1), (2, 8, 8), 4 * 4 * 4 * 2 * 9),
        (nn.Conv2d(4, 8, 3, padding=1, groups=4), (4, 4, 4), 4 * 4 * 8 * 1 * 9),
        (nn.Conv2d(1, 1, (3, 1), padding=(2, 0), dilation=(2, 1)), (1, 6, 6), 36 * 3),
        (nn.Conv3d(1, 2, 3, padding=1), (1, 2, 3, 4), 24 * 2 * 27),
        # values of the input x output channels of the group x places of the kernel: each value is spread once
        (nn.ConvTranspose2d(2, 3, 4, stride=2, padding=1), (2, 5, 5), 25 * 2 * 3 * 16),
        (nn.ConvTranspose2d(4, 2, 2, stride=2, groups=2), (4, 3, 3), 9 * 4 * 1 * 4),
        (nn.ConvTranspose3d(1, 2, 2, stride=2), (1, 2, 2, 3), 12 * 2 * 8),
        (nn.Linear(4, 5), (1, 3, 4), 3 * 4 * 5),
        (Attention(), (1, 3, 4), 3 * 3 * 4 + 3 * 3 * 4),
        (nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.AvgPool2d(2), nn.Upsample(scale_factor=2)), (2, 8, 8), 0),
    ],
)
def test_multiply_adds_by_hand(layer, shape, expected):
    assert multiply_adds(layer, shape) == expected


def test_image_is_padded_as_inference_pads_it():
    network = nn.Conv2d(1, 1, 3, padding=1)
    network.size_divisor = 4
    assert multiply_adds(network, (1, 5, 8)) == 8 * 8 * 9


def test_cost_grows_with_the_image():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ConvTranspose2d(4, 2, 2, stride=2))
    assert multiply_adds(network, (1, 128, 64)) == 8 * multiply_adds(network, (1, 32, 32)) > 0


def test_network_stays_as_it_was():
    network = build_network("enet").train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = torch.get_rng_state()
    multiply_adds(network, (1, 32, 32))
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("shape", [(2, 32, 32), (1, 32), (1, 0, 32)])
def test_image_that_the_network_does_not_take(shape):
    with pytest.raises(InputError, match=rf"ENet takes no image of {shape[0]} x {shape[1]}.*channels first"):
        multiply_adds(build_network("enet"), shape)
