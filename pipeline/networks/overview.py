# SPDX-License-Identifier: Apache-2.0
"""What `python -m pipeline.networks` prints: the names, or of one network its cost and where it can be tapped."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import InputError
from pipeline.networks.build import NETWORKS, build_network
from pipeline.networks.cost import multiply_adds, parameter_count
from pipeline.networks.monai_networks import MONAI_NETWORKS
from pipeline.networks.saved_model import load_model
from pipeline.networks.shapes import distinct, feature_maps

SIZE = 224


def overview(options: argparse.Namespace) -> Iterator[str]:
    """Yield the lines that the command line asks for; raise `InputError` for a network that cannot be built."""
    if options.name is None:
        yield from (*NETWORKS, *MONAI_NETWORKS)
        return
    network, sides = _network(options)
    yield from _summary(options.name, network, sides)
    if options.taps or options.all:
        yield from _tap_table(network, sides, options.all)


def _network(options: argparse.Namespace) -> tuple[nn.Module, tuple[int, ...]]:
    """Return the network that the command line names, without values unless a file has them, and its image's sides."""
    if options.size is not None and options.size < 1:
        raise InputError(f"--size is {options.size}; give a whole number from 1")
    if options.name.endswith(".pt") or Path(options.name).exists():
        if (options.in_channels, options.out_channels, options.options) != (None, None, None):
            raise InputError(f"{options.name} says itself how its network is built; give --size and --taps alone")
        model = load_model(options.name)
        return model.network, _sides(model.network, options.size or model.size)
    in_channels = 1 if options.in_channels is None else options.in_channels
    out_channels = 9 if options.out_channels is None else options.out_channels
    with torch.device("meta"):
        network = build_network(options.name, in_channels, out_channels, **_read_options(options.options))
    return network, _sides(network, options.size or (network.size_divisor if network.fixed_size else SIZE))


def _sides(network: nn.Module, size: int | tuple[int, ...]) -> tuple[int, ...]:
    return (size,) * network.spatial_dims if isinstance(size, int) else size


def _read_options(text: str | None) -> dict[str, Any]:
    """Return the keyword arguments of a network from the text of a Python dictionary."""
    if text is None:
        return {}
    try:
        options = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise InputError(f"--options {text} cannot be read; write \"{{'width': 0.25}}\"") from error
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        raise InputError(f"--options {text} is no dictionary of names; write \"{{'width': 0.25}}\"")
    if clash := sorted({"name", "in_channels", "out_channels"} & options.keys()):
        raise InputError(f"--options {text} holds {', '.join(clash)}, which belongs outside: NAME, --in_channels, ...")
    return options


def _summary(name: str, network: nn.Module, sides: tuple[int, ...]) -> list[str]:
    image = " x ".join(map(str, (network.in_channels, *sides)))
    divisor = network.size_divisor
    return [
        f"{name}: {network.in_channels} -> {network.out_channels} channels, {network.spatial_dims}D, "
        + (f"sides of {divisor}" if network.fixed_size else f"sides padded to multiples of {divisor}"),
        f"parameters     {parameter_count(network):,}",
        f"multiply-adds  {multiply_adds(network, (network.in_channels, *sides)) / 1e9:,.6f} G, one image {image}",
        f"taps           {', '.join(network.taps)} ({', '.join(map(str, network.tap_channels))} channels)",
    ]


def _tap_table(network: nn.Module, sides: tuple[int, ...], with_layers: bool) -> list[str]:
    """Return a table of the modules that can be tapped, in the order in which they run.

    Single layers inside of blocks can be tapped like all others, but would hide them in a table.
    """
    blocks = {name for name, module in network.named_modules() if "." not in name or any(module.children())}
    maps = [one for one in distinct(feature_maps(network)) if with_layers or one.name in blocks]
    padded = [-(-side // network.size_divisor) * network.size_divisor for side in sides]
    rows = [("module", f"output at {' x '.join(map(str, sides)) if len(set(sides)) > 1 else sides[0]}", "stride")]
    for one in maps:
        shape = [side // stride for side, stride in zip(padded, one.strides, strict=True)]
        rows.append((one.name, " x ".join(map(str, (one.channels, *shape))), one.stride))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return [f"{name:{widths[0]}}  {output:{widths[1]}}  {stride}" for name, output, stride in rows]
