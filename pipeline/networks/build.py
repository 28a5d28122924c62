# SPDX-License-Identifier: Apache-2.0
"""Networks by name, as configs and checkpoints call for them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable
from typing import Any

import torch

from pipeline.errors import InputError
from pipeline.networks.base import SegmentationNetwork
from pipeline.networks.enet import ENet
from pipeline.networks.erfnet import ERFNet
from pipeline.networks.fanet import FANet
from pipeline.networks.mobile_unet import MobileUNet

NETWORKS: dict[str, type[SegmentationNetwork]] = {
    "fanet": FANet,
    "mobile_unet": MobileUNet,
    "enet": ENet,
    "erfnet": ERFNet,
}


def build_network(name: str, in_channels: int = 1, out_channels: int = 2, **options: Any) -> SegmentationNetwork:
    """Return a freshly initialised network; its `arguments` hold what it was built with.

    Args:
        name: a key of `NETWORKS`.
        in_channels: channels of the images, 1 for scans.
        out_channels: number of classes K, the background included.
        options: keyword arguments of the network's class: `width` (fanet), `bottleneck_channels` (mobile_unet). An
            option of another network may be given as None, which is to leave it out: one config then serves them all.

    Raises:
        InputError: an unknown name or option (the message names the nearest), or a value that makes no network.
    """
    network_class = NETWORKS.get(name) if isinstance(name, str) else None
    if network_class is None:
        raise InputError(f"unknown network {name!r}; {_nearest(name, NETWORKS)}")
    _check_count("in_channels", in_channels, 1)
    _check_count("out_channels", out_channels, 2)
    known = _option_names(network_class)
    elsewhere = {option for other in NETWORKS.values() for option in _option_names(other)}
    options = {
        key: value for key, value in options.items() if key in known or key not in elsewhere or value is not None
    }
    for option in options:
        if option not in known:
            hint = _nearest(option, known) if known else "it has none"
            raise InputError(f"network '{name}' has no option '{option}'; {hint}")
    network = network_class(in_channels, out_channels, **options)
    network.arguments = {"name": name, "in_channels": in_channels, "out_channels": out_channels, **options}
    return network


def tap_channels(name: str, **options: Any) -> tuple[int, int]:
    """Return the channels of the shallow and the deep tap of a network, without the cost of building it.

    Raises `InputError` like `build_network`.
    """
    with torch.device("meta"):
        return build_network(name, **options).tap_channels


def _option_names(network_class: type[SegmentationNetwork]) -> list[str]:
    parameters = inspect.signature(network_class).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def _check_count(what: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{what} is {value!r}; give a whole number from {least}")


def _nearest(given: Any, known: Iterable[str]) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(str(given).lower(), known, n=1, cutoff=0)[0]
    return f"did you mean '{near}'? Known: {', '.join(known)}"
