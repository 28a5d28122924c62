# SPDX-License-Identifier: Apache-2.0
"""The form of a network that inference runs: the same logits in fewer steps, and the network itself untouched."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pipeline.networks import NETWORKS, PaddedInferer, build_network, for_inference

SMALL = {"fanet": {"width": 0.125}, "mobile_unet": {}, "enet": {}, "erfnet": {}}
LEFT = {"fanet": 14, "mobile_unet": 0, "enet": 1, "erfnet": 3}  # norms that stand behind no single convolution


def with_statistics(network: nn.Module) -> nn.Module:
    """Return the network in evaluation mode, normalising by other numbers than 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.copy_(0.2 * torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
            with torch.no_grad():
                module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
                module.bias.copy_(0.1 * torch.randn(module.bias.shape, generator=generator))
    return network.eval()


def norms(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def assert_same_logits(network: nn.Module, images: torch.Tensor) -> None:
    with torch.inference_mode():
        expected, logits = (PaddedInferer()(images, one) for one in (network, for_inference(network)))
    scale = float(expected.std())
    torch.testing.assert_close(logits / scale, expected / scale, atol=1e-4, rtol=1e-4)
    best = expected.topk(2, dim=1).values
    clear = best[:, 0] - best[:, 1] > 1e-4 * scale
    assert clear.float().mean() > 0.99
    assert torch.equal(logits.argmax(dim=1)[clear], expected.argmax(dim=1)[clear])


def test_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0)).eval()
    network[0].weight.data.fill_(3.0)
    network[0].bias.data.fill_(1.0)
    network[1].running_mean.fill_(2.0)
    network[1].running_var.fill_(4.0)
    network[1].bias.data.fill_(5.0)
    form = for_inference(network)  # (3 x + 1 - 2) / 2 + 5
    assert (form[0].weight.item(), form[0].bias.item()) == (1.5, 4.5)
    assert isinstance(form[1], nn.Identity)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_logits_and_classes_are_those_of_the_network(name: str, channels: int) -> None:
    torch.manual_seed(0)
    network = with_statistics(build_network(name, channels, 4, **SMALL[name]))
    assert len(norms(for_inference(network))) == LEFT[name]
    assert_same_logits(network, torch.rand(3, channels, 64, 50))


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_network_itself_is_left_as_it_was(name: str) -> None:
    network = build_network(name, 1, 3, **SMALL[name]).train()
    before = copy.deepcopy(network.state_dict())
    form = for_inference(network)
    assert network.training
    assert not form.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert (form.size_divisor, form.in_channels) == (network.size_divisor, network.in_channels)


@pytest.mark.parametrize(
    ("name", "options", "sides"),
    [
        ("monai.networks.nets.UNet", {"channels": (4, 8), "strides": (2,), "norm": "batch"}, (16, 16)),
        ("monai.networks.nets.SegResNet", {"init_filters": 8, "norm": "batch"}, (32, 32)),
        ("monai.networks.nets.AttentionUnet", {"channels": (4, 8), "strides": (2,)}, (16, 16)),
        ("monai.networks.nets.UNet", {"channels": (4, 8), "strides": (2,), "spatial_dims": 3}, (8, 8, 8)),
    ],
)
def test_networks_of_monai_give_the_same(name: str, options: dict, sides: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = with_statistics(build_network(name, 1, 3, **options))
    assert_same_logits(network, torch.rand(2, 1, *sides))


class OtherWay(nn.Sequential):
    """A sequence in name only."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self[1](self[0](images)) + self[0](images)


def shared_convolution() -> nn.Module:
    convolution = nn.Conv2d(1, 1, 3, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(1), convolution, nn.ReLU())


def hooked() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1))
    network[0].register_forward_hook(lambda module, inputs, output: output + 1)
    return network


def parametrised() -> nn.Module:
    convolution = nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 1, 3, padding=1))
    return nn.Sequential(convolution, nn.BatchNorm2d(1))


@pytest.mark.parametrize(
    "network",
    [
        OtherWay(nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1)),
        shared_convolution(),
        hooked(),
        parametrised(),
        nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2, track_running_stats=False)),
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, 2, groups=2), nn.BatchNorm2d(4)),
    ],
    ids=["other forward", "shared", "hooked", "parametrised", "statistics of the batch", "grouped transposed"],
)
def test_what_cannot_be_folded_is_kept(network: nn.Module) -> None:
    images = torch.rand(2, 1, 8, 8)
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(for_inference(network)(images), network(images), atol=1e-5, rtol=1e-5)
    assert len(norms(for_inference(network))) == 1


def test_networks_without_weights_are_returned_as_they_are() -> None:
    network = nn.ReLU()
    assert for_inference(network) is network
