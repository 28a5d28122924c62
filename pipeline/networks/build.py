# SPDX-License-Identifier: Apache-2.0
"""Networks by name, as configs and checkpoints call for them."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from monai.networks import nets
from torch import nn

from pipeline.described import plain
from pipeline.errors import InputError
from pipeline.networks.architectures.enet import ENet
from pipeline.networks.architectures.erfnet import ERFNet
from pipeline.networks.architectures.fanet import FANet
from pipeline.networks.architectures.mobile_unet import MobileUNet
from pipeline.networks.base import SegmentationNetwork
from pipeline.networks.monai_networks import FAMILIES, MONAI_NETWORKS, PACKAGE, build_monai_network
from pipeline.networks.shapes import check_taps, feature_maps

NETWORKS: dict[str, type[SegmentationNetwork]] = {
    "fanet": FANet,
    "mobile_unet": MobileUNet,
    "enet": ENet,
    "erfnet": ERFNet,
}


def build_network(name: Any, in_channels: int = 1, out_channels: int = 2, **options: Any) -> nn.Module:
    """Return a freshly initialised network with the attributes of `SegmentationNetwork`.

    Its `arguments` hold what it was built with.

    Args:
        name: a key of `NETWORKS`, or the dotted name of one of MONAI's networks in `MONAI_NETWORKS`; or a mapping with
            such a `name` (or `_target_`) and options. MONAI's configs build a mapping with `_target_` before this
            function is called. With `_mode_: callable` they pass a `functools.partial`, which is accepted too.
        in_channels: channels of the images, 1 for scans.
        out_channels: number of classes K, the background included.
        options: keyword arguments of the network's class: `width` (fanet), `bottleneck_channels` (mobile_unet), those
            of MONAI's classes. Options of other networks are accepted if they are None, so that one config serves all
            networks. Every network takes `taps`, two or more dotted names of modules for distillation,
            shallow to deep; MONAI's take `spatial_dims`, by default 2.

    Raises:
        InputError: an unknown name, option or tap (the message names the nearest), or a value that makes no network.
    """
    name, own = _read_request(name)
    fixed = {"in_channels": in_channels, "out_channels": out_channels}
    if options.get("spatial_dims") is not None:
        fixed["spatial_dims"] = options["spatial_dims"]
    for key, given in fixed.items():
        if own.pop(key, given) != given:
            raise InputError(f"network '{name}' is asked for with another {key} than the {given} of the data; drop it")
    options.update(own)
    if not isinstance(name, str) or (name not in NETWORKS and not name.startswith(f"{PACKAGE}.")):
        raise InputError(f"unknown network {name!r}; {_nearest(name, (*NETWORKS, *MONAI_NETWORKS))}")
    _check_count("in_channels", in_channels, 1)
    _check_count("out_channels", out_channels, 2)
    if name in NETWORKS:
        return _build_own(name, in_channels, out_channels, options)
    elsewhere = _options_of_all()
    options = {key: value for key, value in options.items() if value is not None or key not in elsewhere}
    return build_monai_network(name, in_channels, out_channels, **options)


def network_recipe(name: Any) -> str | dict[str, Any]:
    """Return what `build_network` takes as `name` as text, or as a mapping of plain values that it takes as well.

    Recipes and checkpoints keep it. Raises `InputError` like `build_network` for what is neither.
    """
    if isinstance(name, str):
        return name
    name, options = _read_request(name)
    try:
        return plain("network", {"name": name, **options})
    except TypeError as error:
        raise InputError(f"network '{name}': {error}") from error


def tap_channels(name: Any, **options: Any) -> tuple[int, ...]:
    """Return the channels of the taps of a network, shallow to deep, without the cost of building it.

    Raises `InputError` like `build_network`.
    """
    with torch.device("meta"):
        return build_network(name, **options).tap_channels


def _read_request(request: Any) -> tuple[Any, dict[str, Any]]:
    """Return name and options of a network asked for in any of the ways that `build_network` knows."""
    if isinstance(request, functools.partial) and not request.args:
        return _name_of_class(request.func), dict(request.keywords)
    if isinstance(request, Mapping):
        options = {key: value for key, value in request.items() if key not in ("_target_", "_mode_")}
        name = options.pop("name", request.get("_target_"))
        if name is None:
            raise InputError(f"network {dict(request)!r} has no name; give 'name': one of {', '.join(NETWORKS)}, ...")
        return name, options
    if isinstance(request, nn.Module):
        raise InputError(
            f"network is a finished {type(request).__name__}, which does not know the classes of the dataset; write "
            "'name' in place of '_target_', or add '_mode_': 'callable'"
        )
    return (_name_of_class(request) if inspect.isclass(request) else request), {}


def known_name(network_class: Any) -> str | None:
    """Return the name under which `build_network` knows a class, None for another."""
    known = {**NETWORKS, **{f"{PACKAGE}.{short}": getattr(nets, short) for short in FAMILIES}}
    return next((name for name, one in known.items() if network_class is one), None)


def _name_of_class(network_class: Any) -> str:
    """Return the name of a class that is known; of any other its own name, which is then refused."""
    own = f"{getattr(network_class, '__module__', '')}.{getattr(network_class, '__qualname__', network_class)}"
    return known_name(network_class) or own


def _build_own(name: str, in_channels: int, out_channels: int, options: dict[str, Any]) -> SegmentationNetwork:
    """Return a network of this package."""
    network_class = NETWORKS[name]
    known, elsewhere = _option_names(network_class), _options_of_all()
    options = {
        key: value for key, value in options.items() if key in known or key not in elsewhere or value is not None
    }
    taps, spatial_dims = options.pop("taps", None), options.pop("spatial_dims", 2)
    if spatial_dims != 2:
        raise InputError(f"network '{name}' is for images, spatial_dims is {spatial_dims!r}; leave it out")
    for option in options:
        if option not in known:
            hint = _nearest(option, known) if known else "it has none"
            raise InputError(f"network '{name}' has no option '{option}'; {hint}")
    network = network_class(in_channels, out_channels, **options)
    network.arguments = {"name": name, "in_channels": in_channels, "out_channels": out_channels, **options}
    if taps is not None:
        network.tap_channels = check_taps(network, taps, feature_maps(network))
        network.taps = tuple(taps)
        network.arguments["taps"] = list(taps)
    return network


def _option_names(network_class: type[SegmentationNetwork]) -> list[str]:
    parameters = inspect.signature(network_class).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def _options_of_all() -> set[str]:
    """Return the options of all networks of this package, which any network may be given as None."""
    return {option for other in NETWORKS.values() for option in _option_names(other)} | {"taps", "spatial_dims"}


def _check_count(what: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{what} is {value!r}; give a whole number from {least}")


def _nearest(given: Any, known: Iterable[str]) -> str:
    """Return a hint at the nearest name; of dotted ones the last part counts."""
    known = sorted(known)
    short = {name.rpartition(".")[2].lower(): name for name in known}
    near = difflib.get_close_matches(str(given).rpartition(".")[2].lower(), short, n=1, cutoff=0)[0]
    return f"did you mean '{short[near]}'? Known: {', '.join(known)}"
