# SPDX-License-Identifier: Apache-2.0
"""What is particular to each student: the bottleneck in front of the classes, where the taps sit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.errors import InputError
from pipeline.networks import ENet, ERFNet, MobileUNet
from pipeline.networks.architectures.enet import DownBottleneck
from pipeline.networks.architectures.erfnet import FactorisedResidual


def test_enets_first_block_keeps_the_pooled_image_beside_learned_channels():
    network, images = ENet(3, 2), torch.rand(1, 3, 16, 16)
    assert network.initial.conv.out_channels == 16 - 3
    network.initial.norm, network.initial.activation = nn.Identity(), nn.Identity()
    torch.testing.assert_close(network.initial(images)[:, 13:], F.max_pool2d(images, 3, 2, 1))


def test_enets_down_bottleneck_pads_the_shortcut_with_zeros():
    torch.manual_seed(0)
    block, features = DownBottleneck(16, 64, 0.0).eval(), torch.rand(1, 16, 8, 8)
    block.body = nn.Conv2d(16, 64, 2, stride=2, bias=False)
    nn.init.zeros_(block.body.weight)
    output, _ = block(features)
    torch.testing.assert_close(output[:, :16], F.max_pool2d(features, 2))
    assert not output[:, 16:].any()


def test_enet_has_prelu_with_one_slope_in_the_encoder_and_relu_in_the_decoder():
    network = ENet(1, 2)
    kinds = {
        type(module)
        for stage in (network.up4, network.stage4, network.up5, network.stage5)
        for module in stage.modules()
    }
    assert nn.ReLU in kinds
    assert nn.PReLU not in kinds
    slopes = [module for module in network.modules() if isinstance(module, nn.PReLU)]
    assert {module.weight.numel() for module in slopes} == {1}
    assert not any(isinstance(module, nn.ReLU) for module in network.stage3.modules())


@pytest.mark.parametrize(("network_class", "name"), [(ENet, "enet"), (ERFNet, "erfnet")])
def test_too_many_channels_for_a_first_block_of_16(network_class, name):
    network_class(15, 2)
    with pytest.raises(InputError, match=f"{name} takes at most 15 channels, not 16"):
        network_class(16, 2)


def test_erfnet_dilates_only_the_second_pair_and_normalises_with_1e_3():
    convolutions = [module for module in FactorisedResidual(8, 0.1, 4).modules() if isinstance(module, nn.Conv2d)]
    assert [module.dilation for module in convolutions] == [(1, 1), (1, 1), (4, 1), (1, 4)]
    network = ERFNet(1, 2)
    assert {module.eps for module in network.modules() if isinstance(module, nn.BatchNorm2d)} == {1e-3}
    dilations = [block.body[5].dilation[0] for block in network.encoder3]
    assert dilations == [2, 4, 8, 16, 2, 4, 8, 16]


def test_mobile_unet_logits_span_three_dimensions_with_the_original_bottleneck():
    torch.manual_seed(0)
    images, ranks = torch.rand(1, 1, 64, 64), {}
    for bottleneck in (3, None):
        network = MobileUNet(1, 9, bottleneck_channels=bottleneck).double().eval()
        with torch.no_grad():
            logits = network(images.double())[0].flatten(1)
        logits = logits - logits.mean(dim=1, keepdim=True)
        ranks[bottleneck] = int(torch.linalg.matrix_rank(logits, rtol=1e-9))
    assert ranks == {3: 3, None: 9}


@pytest.mark.parametrize("bottleneck", [0, -3, 2.5, "3", True])
def test_bottleneck_that_makes_no_network(bottleneck):
    with pytest.raises(InputError, match=r"bottleneck_channels .* whole number"):
        MobileUNet(1, 2, bottleneck_channels=bottleneck)


def test_mobile_unet_starts_from_a_normal_distribution_by_output_channels():
    torch.manual_seed(0)
    network = MobileUNet(1, 2)
    assert network.up4.weight.std().item() == pytest.approx(math.sqrt(2 / (4 * 4 * 96)), rel=0.02)
    assert not network.up4.bias.any()
    assert not network.head[0].bias.any()


def test_mobile_units_have_a_shortcut_only_where_shapes_agree():
    network = MobileUNet(1, 2)
    shortcuts = [block.has_shortcut for block in network.stage4]
    assert shortcuts == [False, True, True, True, False, True, True]
    assert not network.fuse2.has_shortcut
