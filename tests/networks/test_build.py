# SPDX-License-Identifier: Apache-2.0
"""Networks by name: what is remembered, what None means, and what a mistyped name is answered."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import InputError
from pipeline.networks import ENet, FANet, build_network, tap_channels


def test_network_remembers_how_it_was_built():
    network = build_network("fanet", 1, 3, width=0.125)
    assert isinstance(network, FANet)
    assert network.arguments == {"name": "fanet", "in_channels": 1, "out_channels": 3, "width": 0.125}
    assert ENet(1, 2).arguments == {}


def test_option_of_another_network_may_be_none():
    assert build_network("enet", width=None).arguments == {"name": "enet", "in_channels": 1, "out_channels": 2}
    assert build_network("mobile_unet", width=None, bottleneck_channels=None).head[0].out_channels == 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fannet", {}, "unknown network 'fannet'; did you mean 'fanet'"),
        ("ERFNet", {}, "did you mean 'erfnet'"),
        (None, {}, "unknown network None"),
        (["enet"], {}, "unknown network"),
        ("fanet", {"widht": 0.5}, "no option 'widht'; did you mean 'width'"),
        ("mobile_unet", {"bottleneck": 3}, "did you mean 'bottleneck_channels'"),
        ("enet", {"width": 0.5}, "'enet' has no option 'width'; it has none"),
        ("enet", {"depth": None}, "no option 'depth'"),
        ("enet", {"in_channels": 0}, "in_channels is 0; give a whole number from 1"),
        ("enet", {"out_channels": 1}, "out_channels is 1; give a whole number from 2"),
        ("enet", {"out_channels": "9"}, "out_channels is '9'"),
        ("enet", {"out_channels": 2.0}, "out_channels is 2.0"),
        ("enet", {"in_channels": True}, "in_channels is True"),
    ],
)
def test_what_cannot_be_built_names_the_nearest(name, options, message):
    with pytest.raises(InputError, match=message):
        build_network(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "channels"),
    [("fanet", {}, 256), ("fanet", {"width": 0.25}, 64), ("mobile_unet", {}, 24), ("enet", {}, 64), ("erfnet", {}, 64)],
)
def test_tap_channels_by_name(name, options, channels):
    state = torch.get_rng_state()
    assert tap_channels(name, **options) == (channels, channels)
    assert torch.equal(torch.get_rng_state(), state)


def test_tap_channels_of_an_unknown_network():
    with pytest.raises(InputError, match="did you mean 'enet'"):
        tap_channels("ennet")
