# SPDX-License-Identifier: Apache-2.0
"""The order in which a training network keeps its weights on a CPU: other strides, the same training."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.errors import InputError
from pipeline.networks import NETWORKS, build_network, for_training

SMALL = {"fanet": {"width": 0.125}, "mobile_unet": {}, "enet": {}, "erfnet": {}}


def without_dropout(network: nn.Module) -> nn.Module:
    """Return the network with no element dropped: which ones are depends on the order in memory."""
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return network


def train(network: nn.Module, steps: int = 3) -> list[float]:
    """Return the losses of some steps of Adam on one batch."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 1, 64, 64, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (2, 64, 64), generator=generator)
    optimizer, losses = torch.optim.Adam(network.parameters(), 1e-3), []
    for _ in range(steps):
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", NETWORKS)
def test_trains_like_the_network_as_built(name):
    network = without_dropout(build_network({"name": name, **SMALL[name]}, out_channels=3)).double().train()
    faster = for_training(copy.deepcopy(network), "cpu")
    expected = train(network)
    assert train(faster) == pytest.approx(expected, rel=1e-9)
    assert expected[-1] < expected[0]


def test_own_networks_keep_their_weights_with_channels_last():
    network = for_training(build_network("mobile_unet"), "cpu")
    weights = [weight for weight in network.parameters() if weight.ndim == 4 and min(weight.shape[1:]) > 1]
    assert weights
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def test_networks_of_others_stay_as_they_are():
    network = nn.Sequential(nn.Conv2d(2, 4, 3))
    strides = network[0].weight.stride()
    assert for_training(network, "cpu") is network
    assert network[0].weight.stride() == strides


def test_unknown_device_is_refused():
    with pytest.raises(InputError, match="device 'cuda:99' cannot be used"):
        for_training(build_network("enet"), "cuda:99")
