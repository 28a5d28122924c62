# SPDX-License-Identifier: Apache-2.0
"""Networks that a config builds by their class: any of MONAI's or of the user's own, beside those with a short name.

`adopt` gives them the attributes that training, padding, distillation and model files need.
"""

from __future__ import annotations

import inspect
import pydoc
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.described import TARGET, build, dotted_name, plain
from pipeline.errors import InputError
from pipeline.networks.build import build_network, known_name
from pipeline.networks.monai_networks import default_taps, drop_channels_not_images
from pipeline.networks.shapes import check_taps, distinct, feature_maps, without_values

TRUSTED_MODULES = ("monai.networks.nets", "pipeline.networks")
_LARGEST_DIVISOR = 128
_LEAST_SIDE, _RATIOS = 8, (3, 5, 7)
_SHAPE = ("in_channels", "out_channels", "spatial_dims")
_ATTRIBUTES = (*_SHAPE, "size_divisor", "fixed_size", "taps", "tap_channels", "arguments")


def adopt(
    network: nn.Module, description: Mapping[str, Any], in_channels: int, out_channels: int, spatial_dims: int = 2
) -> nn.Module:
    """Return the network itself with the attributes of `SegmentationNetwork`.

    A network from `build_network` has them already. A class of this package, or one of MONAI's that `build_network`
    knows, is treated as if it came from there. For any other class, the smallest multiple that it takes as side of an
    image is found by trial on the meta device, and the taps by the rule of `default_taps`.

    Args:
        network: the network that a config has built.
        description: its description by `pipeline.described.describe`.
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
        name = known_name(type(network))
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
    own_modules: Sequence[str] = (),
) -> nn.Module:
    """Return a network from the `arguments` that `adopt` gave one, freshly initialised, on the default device.

    Raises:
        InputError: a class outside `TRUSTED_MODULES`, `own_modules` and what the user trusts; one that would load
            weights from elsewhere, or that builds no such network.
    """
    description, modules = {**options, TARGET: name}, (*TRUSTED_MODULES, *own_modules)
    _check_loads_nothing(name, options)
    try:
        network = build(description, nn.Module, modules)
    except NotImplementedError:  # it needs values: on the meta device there are none
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            network = build(description, nn.Module, modules)
    return _with_attributes(network, description, in_channels, out_channels, spatial_dims, taps)


def _check_loads_nothing(name: str, options: Mapping[str, Any]) -> None:
    """Refuse a class that would fetch weights over the network, as some of MONAI's do, even unasked."""
    component = pydoc.locate(name) if str(name).startswith("monai.") else None
    parameters = inspect.signature(component).parameters if inspect.isclass(component) else {}
    defaults = {key: one.default for key, one in parameters.items() if one.default is not one.empty}
    for option, value in {**defaults, **options}.items():
        if "pretrained" in option and value:
            raise InputError(f"{name} would load weights by {option}={value!r}; a model file has its own")


def _without_pretrained(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options by which the network is built again: its weights come from the model file then."""
    return {key: (False if value is True else None) if "pretrained" in key else value for key, value in options.items()}


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
    if taps or len(distinct(maps)) > 1:
        network.taps = tuple(taps or default_taps(network, maps))
        network.tap_channels = check_taps(network, network.taps, maps)
    else:  # too few to compare: only methods of logits take it
        network.taps = network.tap_channels = ()
    network.arguments = {
        "name": description[TARGET],
        "in_channels": in_channels,
        "out_channels": out_channels,
        "spatial_dims": spatial_dims,
        "taps": list(network.taps),
        "options": _without_pretrained({key: value for key, value in description.items() if key != TARGET}),
    }
    return network


def _least_divisor(network: nn.Module) -> int:
    """Return the least power of two whose multiples the network takes as sides, giving logits of the same sides."""
    bare, problem, divisor = without_values(network), "", 1
    while divisor <= _LARGEST_DIVISOR:
        problem = _problem(bare, network, divisor)
        if not problem:
            return divisor
        divisor *= 2
    name = dotted_name(type(network))
    raise InputError(f"{name} gives no logits for images of any multiple up to {_LARGEST_DIVISOR} pixels: {problem}")


def _problem(bare: nn.Module, network: nn.Module, divisor: int) -> str:
    """Return what is wrong with the output for a small image whose sides are odd multiples, or an empty text."""
    sides = tuple(ratio * divisor * (-(-_LEAST_SIDE // divisor) | 1) for ratio in _RATIOS[: network.spatial_dims])
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
