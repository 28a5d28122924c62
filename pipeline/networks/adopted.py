# SPDX-License-Identifier: Apache-2.0
"""Networks that a config builds by their class: any of MONAI's or of the user's own, beside those with a short name.

`adopt` gives them what training, padding and distillation ask of a network, and what a model file keeps of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.networks import nets
from torch import Tensor, nn

from pipeline.described import TARGET, build, dotted_name, plain
from pipeline.errors import InputError
from pipeline.networks.build import NETWORKS, build_network
from pipeline.networks.monai_networks import FAMILIES, PACKAGE, default_taps, drop_channels_not_images
from pipeline.networks.shapes import check_taps, feature_maps, trial_sides, without_values

TRUSTED_MODULES = ("monai.networks.nets", "pipeline.networks")
_LARGEST_DIVISOR = 128
_SHAPE = ("in_channels", "out_channels", "spatial_dims")
_ATTRIBUTES = (*_SHAPE, "size_divisor", "fixed_size", "taps", "tap_channels", "arguments")


def adopt(
    network: nn.Module, description: Mapping[str, Any], in_channels: int, out_channels: int, spatial_dims: int = 2
) -> nn.Module:
    """Return the network itself with the attributes of `SegmentationNetwork`.

    One from `build_network` has them. A class of this package, or one of MONAI's that `build_network` knows, is treated
    as if it came from there. Of any other class the least multiple that it takes is found by trial on the meta device,
    and the taps by the rule of `default_taps`.

    Args:
        network: that a config has built.
        description: of it, by `pipeline.described.describe`.
        in_channels: channels of the images.
        out_channels: number of classes, the background included.
        spatial_dims: 2 for images, 3 for volumes.

    Raises:
        InputError: what the config builds is no network, or gives anything but logits of its image's size.
    """
    if not isinstance(network, nn.Module):
        raise InputError(f"network_def builds a {type(network).__name__}; give the class of a network")
    if "name" not in getattr(network, "arguments", {}):
        options = {key: value for key, value in description.items() if key != TARGET}
        name = _known_name(type(network))
        if name is None:
            return _with_attributes(network, plain("network_def", description), in_channels, out_channels, spatial_dims)
        with torch.device("meta"):
            pattern = build_network(name, **{**_channel_defaults(type(network)), **options})
        for attribute in _ATTRIBUTES:
            setattr(network, attribute, getattr(pattern, attribute))
        if network.spatial_dims == 2:
            drop_channels_not_images(network)
    for what, given in zip(_SHAPE, (in_channels, out_channels, spatial_dims), strict=True):
        if getattr(network, what) != given:
            raise InputError(f"network_def has {what} {getattr(network, what)}, the data need {given}; correct it")
    return network


def build_adopted(
    name: str,
    in_channels: int,
    out_channels: int,
    spatial_dims: int,
    taps: Sequence[str],
    options: Mapping[str, Any],
    trusted_modules: Sequence[str] = (),
) -> nn.Module:
    """Return a network from the `arguments` that `adopt` gave one, freshly initialised, on the default device.

    Raises:
        InputError: a class outside `TRUSTED_MODULES` and `trusted_modules`, or one that builds no such network.
    """
    description, modules = {**options, TARGET: name}, (*TRUSTED_MODULES, *trusted_modules)
    try:
        network = build(description, nn.Module, modules)
    except NotImplementedError:  # it needs values: on the meta device there are none
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            network = build(description, nn.Module, modules)
    return _with_attributes(network, description, in_channels, out_channels, spatial_dims, taps)


def _known_name(network_class: type[nn.Module]) -> str | None:
    """Return the name under which `build_network` knows a class."""
    for name, known in NETWORKS.items():
        if network_class is known:
            return name
    return next((f"{PACKAGE}.{short}" for short in FAMILIES if network_class is getattr(nets, short)), None)


def _channel_defaults(network_class: type[nn.Module]) -> dict[str, Any]:
    parameters = inspect.signature(network_class).parameters
    names = [name for name in _SHAPE if name in parameters]
    return {name: parameters[name].default for name in names if parameters[name].default is not inspect.Parameter.empty}


def _with_attributes(
    network: nn.Module,
    description: Mapping[str, Any],
    in_channels: int,
    out_channels: int,
    spatial_dims: int,
    taps: Sequence[str] | None = None,
) -> nn.Module:
    network.in_channels, network.out_channels, network.spatial_dims = in_channels, out_channels, spatial_dims
    network.fixed_size = False
    network.size_divisor = _least_divisor(network)
    maps = feature_maps(network)
    network.taps = tuple(taps or default_taps(network, maps))
    network.tap_channels = check_taps(network, network.taps, maps)
    network.arguments = {
        "name": description[TARGET],
        "in_channels": in_channels,
        "out_channels": out_channels,
        "spatial_dims": spatial_dims,
        "taps": list(network.taps),
        "options": {key: value for key, value in description.items() if key != TARGET},
    }
    return network


def _least_divisor(network: nn.Module) -> int:
    """Return the least power of two whose multiples the network takes as sides, giving logits of the same sides."""
    bare, problem, divisor = without_values(network), "", 1
    while divisor <= _LARGEST_DIVISOR:
        network.size_divisor = divisor
        problem = _problem(bare, network)
        if not problem:
            return divisor
        divisor *= 2
    name = dotted_name(type(network))
    raise InputError(f"{name} gives no logits for images of any multiple up to {_LARGEST_DIVISOR} pixels: {problem}")


def _problem(bare: nn.Module, network: nn.Module) -> str:
    """Return what is wrong with the output for a small image of the network's `size_divisor`, or an empty text."""
    sides = trial_sides(network)
    expected = (1, network.out_channels, *sides)
    for training in (True, False):
        try:
            with torch.no_grad():
                output = bare.train(training)(torch.empty(1, network.in_channels, *sides, device="meta"))
        except Exception as error:  # networks raise many kinds for sides that they don't take
            return str(error).partition("\n")[0] or type(error).__name__
        if not isinstance(output, Tensor) or output.shape != expected:
            found = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
            return f"it gives {found}, not {expected}"
    return ""
