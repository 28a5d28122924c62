# SPDX-License-Identifier: Apache-2.0
"""FANet's own parts against their definitions written out, its width, and its initial weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.errors import InputError
from pipeline.networks import BatchNorm2d, FANet
from pipeline.networks.architectures.fanet import DualDirectionAttention, SelectiveKernel, averaging


def test_selective_kernel_is_a_softmax_over_two_branches():
    torch.manual_seed(0)
    module, features = SelectiveKernel(8).eval(), torch.randn(2, 8, 6, 5)
    wide, narrow = module.branch5(features), module.branch3(features)
    squeezed = module.squeeze(F.adaptive_avg_pool2d(wide + narrow, 1))
    weights = torch.stack([module.attend5(squeezed), module.attend3(squeezed)]).softmax(dim=0)
    torch.testing.assert_close(module(features), weights[0] * wide + weights[1] * narrow)


def reference_attention(module: DualDirectionAttention, features: torch.Tensor) -> torch.Tensor:
    """The layer list of the method, each map brought back to full size by nearest interpolation."""
    size = features.shape[-2:]
    local, strips = module.reduce_local(features), module.reduce_strips(features)
    maps = [module.full(local)]
    for grid, conv in zip(module.grids, module.pooled, strict=True):
        maps.append(F.interpolate(conv(nn.AdaptiveAvgPool2d(grid)(local)), size))
    local = module.fuse_local(F.relu(torch.cat(maps, 1) if module.gated else sum(maps)))
    row = F.interpolate(module.along_width(nn.AdaptiveAvgPool2d((1, None))(strips)), size)
    column = F.interpolate(module.along_height(nn.AdaptiveAvgPool2d((None, 1))(strips)), size)
    strips = module.fuse_strips(F.relu(row + column))
    strips = features * strips if module.gated else strips
    return F.relu(features + module.fuse(torch.cat([local, strips], 1)))


def test_cells_of_a_grid_overlap_where_it_does_not_divide_the_map():
    # Five rows in two cells: rows 0 to 2, and rows 2 to 4.
    expected = torch.tensor([[1.0, 1, 1, 0, 0], [0, 0, 1, 1, 1]]) / 3
    torch.testing.assert_close(averaging(5, 2, expected), expected)


@pytest.mark.parametrize("side", [1, 3, 5, 12])
@pytest.mark.parametrize("size", [(1, 2), (7, 12), (24, 13)])
def test_averaging_is_adaptive_pooling(side, size):
    features = torch.randn(2, 3, *size)
    rows, columns = (averaging(length, side, features) for length in size)
    torch.testing.assert_close(rows @ features @ columns.T, F.adaptive_avg_pool2d(features, side))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("size", [(16, 12), (5, 7), (1, 1)])
def test_attention_is_its_definition_on_maps_of_any_size(gated, size):
    torch.manual_seed(0)
    module, features = DualDirectionAttention(4, (3, 6), gated).eval(), torch.randn(2, 4, *size)
    torch.testing.assert_close(module(features), reference_attention(module, features), rtol=1e-5, atol=1e-5)


def test_full_width_forward():
    torch.manual_seed(0)
    network, images = FANet(1, 2), torch.rand(1, 1, 64, 64)
    assert network.encoder1[0].shortcut[0].out_channels == 64
    with torch.no_grad():
        assert network.eval()(images).shape == (1, 2, 64, 64)


@pytest.mark.parametrize(
    ("width", "base"), [(None, 64), (1, 64), (0.25, 16), (0.125, 8), (0.3, 20), (0.001, 4), (2, 128)]
)
def test_width_scales_all_channels(width, base):
    with torch.device("meta"):
        network = FANet(1, 2, width=width)
    assert network.tap_channels == (4 * base, 4 * base)
    squeezed = [module.squeeze[0].out_channels for module in network.modules() if isinstance(module, SelectiveKernel)]
    assert min(squeezed) == base // 2
    assert all(channels % 2 == 0 for channels in squeezed)


@pytest.mark.parametrize("width", [0, -1, "0.25", True, math.inf, math.nan])
def test_width_that_makes_no_network(width):
    with pytest.raises(InputError, match=r"width .* positive number"):
        FANet(1, 2, width=width)


def test_convolutions_start_xavier_uniform():
    torch.manual_seed(0)
    network = FANet(1, 2, width=0.25)
    weight = network.encoder4[0].body[3].branch5[0].weight  # (128, 128, 5, 5)
    bound = math.sqrt(6 / (128 * 25 + 128 * 25))
    assert weight.abs().max().item() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    # Transposed convolutions keep torch's own initialisation.
    assert network.up3.weight.abs().max() <= 1 / math.sqrt(network.up3.out_channels * 4)


def test_single_value_is_normalised_by_running_statistics_and_leaves_them():
    norm = BatchNorm2d(2, eps=0.0)
    norm.running_mean.copy_(torch.tensor([1.0, 2.0]))
    norm.running_var.copy_(torch.tensor([4.0, 9.0]))
    value = torch.tensor([5.0, 5.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(norm.train()(value).flatten(), torch.tensor([2.0, 1.0]))  # (5-1)/2, (5-2)/3
    assert norm.running_mean.tolist() == [1, 2]
    assert norm.num_batches_tracked == 0
    with pytest.raises(ValueError, match="more than 1 value"):
        nn.BatchNorm2d(2)(value)


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (1, 3, 4, 5)])
def test_more_values_are_normalised_as_torch_does(shape):
    torch.manual_seed(0)
    ours, theirs, values = BatchNorm2d(3), nn.BatchNorm2d(3), torch.randn(shape)
    assert torch.equal(ours(values), theirs(values))
    assert torch.equal(ours.running_var, theirs.running_var)
    assert list(ours.state_dict()) == list(theirs.state_dict())
